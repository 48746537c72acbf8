// The CPU kernels. Plain pointers to contiguous data and no torch headers, so that they compile in seconds.
//
// Numerics, shared with the CUDA kernels and pointadapterx/ops/reference.py, which agree bit for bit:
// a squared distance is ((dx*dx + dy*dy) + dz*dz), coordinates left to right, in the type of the input and
// without fused multiply-add (-ffp-contract=off); NaN counts as infinite; ties go to the lowest index.
#pragma once

#include <cstdint>

namespace pax::cpu {

// One cloud: points (count, 3) -> chosen (samples).
template <typename T>
void farthest_point_sample(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin,
                           int64_t* chosen);

// Queries (batch, queries, dims) against points (batch, count, dims).
template <typename T>
struct Search {
  const T* query;
  const T* points;
  int64_t queries, count, dims;
};

// Each handles the queries [begin, end) of the flattened (batch * queries), so that callers may split them.
// squared and indices: (batch, queries, k).
template <typename T>
void knn(const Search<T>& search, int64_t k, int64_t begin, int64_t end, T* squared, int64_t* indices);

// squared and indices: (batch, queries).
template <typename T>
void nearest(const Search<T>& search, int64_t begin, int64_t end, T* squared, int64_t* indices);

// indices: (batch, queries, samples); counts: (batch, queries).
template <typename T>
void ball_query(const Search<T>& search, double radius, int64_t samples, int64_t begin, int64_t end,
                int64_t* indices, int64_t* counts);

// Rows [begin, end) of the flattened (batch * queries). Each returns the first row with an index outside
// [0, count), where it stops, or -1.
// points (batch, count, row_bytes) -> out (batch, queries, row_bytes), of any element type.
int64_t gather_points(const char* points, const int64_t* indices, int64_t count, int64_t queries,
                      int64_t row_bytes, int64_t begin, int64_t end, char* out);

// points (batch, count, channels), indices and weights (batch, queries, k) -> out (batch, queries, channels).
template <typename T>
int64_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
                    int64_t channels, int64_t k, int64_t begin, int64_t end, T* out);

}  // namespace pax::cpu
