// The CUDA kernels behind plain pointers, without torch headers: nvcc alone compiles them.
// The same numerics as cpu/kernels.h, which documents them; compile with --fmad=false.
// Every function enqueues on the stream and returns the launch error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace pax::cuda {

// Points of a cloud up to which FPS keeps all in registers and needs no scratch.
constexpr int64_t kFpsInRegisters = 16384;
// Bytes of scratch in which the blocks tell each other what they found.
constexpr int64_t kFpsPartialBytes = 1 << 16;

// Lengths (batch), on the device, say how many points of each cloud are real; null: all. A length outside [1, count],
// or a start of FPS that it leaves out, stops a kernel with a device-side assertion.

// points (batch, count, 3), nearest: scratch (batch, count), partial: scratch of kFpsPartialBytes, 16-byte aligned
// -> chosen (batch, samples). Only without lengths must `samples` be at most `count`.
template <typename T>
cudaError_t farthest_point_sample(const T* points, int64_t batch, int64_t count, int64_t samples, int64_t start,
                                  bool skip_origin, T* nearest, void* partial, int64_t* chosen, cudaStream_t stream,
                                  const int64_t* lengths = nullptr);

// Queries (batch, queries, dims) against points (batch, count, dims). What is written for queries behind a length is 0.
template <typename T>
struct Search {
  const T* query;
  const T* points;
  int64_t batch, queries, count, dims;
  const int64_t* query_lengths = nullptr;
  const int64_t* lengths = nullptr;
};

// squared and indices: (batch, queries, k). Places that a cloud of fewer than k points leaves free are infinitely far and
// repeat the nearest.
template <typename T>
cudaError_t knn(const Search<T>& search, int64_t k, T* squared, int64_t* indices, cudaStream_t stream);

// squared and indices: (batch, queries).
template <typename T>
cudaError_t nearest(const Search<T>& search, T* squared, int64_t* indices, cudaStream_t stream);

// indices: (batch, queries, samples); counts: (batch, queries).
template <typename T>
cudaError_t ball_query(const Search<T>& search, double radius, int64_t samples, int64_t* indices,
                       int64_t* counts, cudaStream_t stream);

// An index outside [0, count) stops the two kernels below with a device-side assertion, as in torch.

// points (batch, count, channels) of elements of 1, 2, 4, 8 or 16 bytes -> out (batch, queries, channels).
cudaError_t gather_points(const void* points, const int64_t* indices, int64_t batch, int64_t count,
                          int64_t queries, int64_t channels, int64_t element_bytes, void* out,
                          cudaStream_t stream);

// points (batch, count, channels), indices and weights (batch, queries, k) -> out (batch, queries, channels).
template <typename T>
cudaError_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t batch, int64_t count,
                        int64_t queries, int64_t channels, int64_t k, T* out, cudaStream_t stream);

}  // namespace pax::cuda
