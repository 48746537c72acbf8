// The kernels' host functions as C functions, for ctypes.
#include "kernels.h"

#define PAX_API extern "C" __attribute__((visibility("default")))
using pax::cuda::Search;

PAX_API int64_t fps_in_registers() { return pax::cuda::kFpsInRegisters; }
PAX_API int64_t fps_partial_bytes() { return pax::cuda::kFpsPartialBytes; }

PAX_API int gather_points(const void* points, const int64_t* indices, int64_t batch, int64_t count, int64_t queries,
                          int64_t channels, int64_t bytes, void* out) {
  return pax::cuda::gather_points(points, indices, batch, count, queries, channels, bytes, out, nullptr);
}

#define PAX_TYPED(T)                                                                                               \
  PAX_API int farthest_point_sample_##T(const T* points, const int64_t* lengths, int64_t batch, int64_t count,     \
                                        int64_t samples, int64_t start, int64_t skip_origin, T* nearest,           \
                                        void* partial, int64_t* chosen) {                                          \
    return pax::cuda::farthest_point_sample<T>(points, batch, count, samples, start, skip_origin != 0, nearest,    \
                                               partial, chosen, nullptr, lengths);                                 \
  }                                                                                                                \
  PAX_API int knn_##T(const Search<T>* search, int64_t k, T* squared, int64_t* indices) {                          \
    return pax::cuda::knn<T>(*search, k, squared, indices, nullptr);                                               \
  }                                                                                                                \
  PAX_API int nearest_##T(const Search<T>* search, T* squared, int64_t* indices) {                                 \
    return pax::cuda::nearest<T>(*search, squared, indices, nullptr);                                              \
  }                                                                                                                \
  PAX_API int ball_query_##T(const Search<T>* search, double radius, int64_t samples, int64_t* indices,            \
                             int64_t* counts) {                                                                    \
    return pax::cuda::ball_query<T>(*search, radius, samples, indices, counts, nullptr);                           \
  }                                                                                                                \
  PAX_API int interpolate_##T(const T* points, const int64_t* indices, const T* weights, int64_t batch,            \
                              int64_t count, int64_t queries, int64_t channels, int64_t k, T* out) {               \
    return pax::cuda::interpolate<T>(points, indices, weights, batch, count, queries, channels, k, out, nullptr);  \
  }
PAX_TYPED(float)
PAX_TYPED(double)
