#include <cstddef>
#include <cstring>

#include "kernels.h"
#include "simd.h"

namespace pax::cpu {

int64_t gather_points(const char* points, const int64_t* indices, int64_t count, int64_t queries,
                      int64_t row_bytes, int64_t begin, int64_t end, char* out) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t index = indices[row];
    if (index < 0 || index >= count) return row;
    const char* source = points + ((row / queries) * count + index) * row_bytes;
    std::memcpy(out + row * row_bytes, source, static_cast<std::size_t>(row_bytes));
  }
  return -1;
}

namespace {

// total += source * weight, for some channels.
template <int Bytes, typename T>
PAX_INLINE void add_scaled(const T* source, T weight, int64_t channels, T* total) {
  using S = Simd<Bytes, T>;
  int64_t c = 0;
  for (; c + S::kWidth <= channels; c += S::kWidth)
    S::store(total + c, S::load(total + c) + S::load(source + c) * weight);
  for (; c < channels; ++c) total[c] += source[c] * weight;
}

// The weighted sum of k rows, from the first to the last.
template <int Bytes, typename T>
PAX_INLINE void weighted_sum(const T* cloud, const int64_t* indices, const T* weights, int64_t channels, int64_t k,
                             T* total) {
  using S = Simd<Bytes, T>;
  int64_t c = 0;
  for (; c + S::kWidth <= channels; c += S::kWidth) {
    auto sum = S::every(0);
    for (int64_t j = 0; j < k; ++j) sum += S::load(cloud + indices[j] * channels + c) * weights[j];
    S::store(total + c, sum);
  }
  for (; c < channels; ++c) {
    T sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += cloud[indices[j] * channels + c] * weights[j];
    total[c] = sum;
  }
}

#define PAX_ROWS(T)                                                                                                  \
  PAX_DISPATCH(void, add_scaled, (const T* source, T weight, int64_t channels, T* total),                            \
               (source, weight, channels, total), add_scaled)                                                        \
  PAX_DISPATCH(void, weighted_sum,                                                                                   \
               (const T* cloud, const int64_t* indices, const T* weights, int64_t channels, int64_t k, T* total),    \
               (cloud, indices, weights, channels, k, total), weighted_sum)
PAX_ROWS(float)
PAX_ROWS(double)
#undef PAX_ROWS

bool all_within(const int64_t* indices, int64_t k, int64_t count) {
  for (int64_t j = 0; j < k; ++j)
    if (indices[j] < 0 || indices[j] >= count) return false;
  return true;
}

}  // namespace

template <typename T>
int64_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
                    int64_t channels, int64_t k, int64_t begin, int64_t end, T* out) {
  for (int64_t row = begin; row < end; ++row) {
    if (!all_within(indices + row * k, k, count)) return row;
    weighted_sum(points + (row / queries) * count * channels, indices + row * k, weights + row * k, channels, k,
                 out + row * channels);
  }
  return -1;
}

template <typename T>
int64_t spread(const T* values, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
               int64_t channels, int64_t k, int64_t begin, int64_t end, T* out) {
  for (int64_t row = 0; row < queries; ++row) {
    if (!all_within(indices + row * k, k, count)) return row;
    for (int64_t j = row * k; j < (row + 1) * k; ++j)
      add_scaled(values + row * channels + begin, weights[j], end - begin, out + indices[j] * channels + begin);
  }
  return -1;
}

#define PAX_INSTANTIATE(T)                                                                                           \
  template int64_t interpolate(const T*, const int64_t*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t,      \
                               int64_t, T*);                                                                         \
  template int64_t spread(const T*, const int64_t*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, T*);
PAX_INSTANTIATE(float)
PAX_INSTANTIATE(double)
#undef PAX_INSTANTIATE

}  // namespace pax::cpu
