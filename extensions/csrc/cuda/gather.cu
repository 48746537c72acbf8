#include "common.cuh"
#include "kernels.h"

namespace pax::cuda {
namespace {

constexpr unsigned kThreads = 256;

__device__ __forceinline__ int64_t first_element() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t element_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <typename E>
__global__ void gather_kernel(const E* __restrict__ points, const int64_t* __restrict__ indices, int64_t batch,
                              int64_t count, int64_t queries, int64_t channels, E* __restrict__ out) {
  const int64_t total = batch * queries * channels;
  for (int64_t i = first_element(); i < total; i += element_stride()) {
    const int64_t row = i / channels;
    const int64_t index = indices[row];
    assert(index >= 0 && index < count && "gather_points: index out of range");
    out[i] = points[((row / queries) * count + index) * channels + i % channels];
  }
}

template <typename T>
__global__ void interpolate_kernel(const T* __restrict__ points, const int64_t* __restrict__ indices,
                                   const T* __restrict__ weights, int64_t batch, int64_t count, int64_t queries,
                                   int64_t channels, int64_t k, T* __restrict__ out) {
  const int64_t total = batch * queries * channels;
  for (int64_t i = first_element(); i < total; i += element_stride()) {
    const int64_t row = i / channels;
    const T* cloud = points + (row / queries) * count * channels;
    T sum = 0;
    for (int64_t neighbour = row * k; neighbour < (row + 1) * k; ++neighbour) {
      const int64_t index = indices[neighbour];
      assert(index >= 0 && index < count && "interpolate: index out of range");
      sum += cloud[index * channels + i % channels] * weights[neighbour];
    }
    out[i] = sum;
  }
}

template <typename E>
cudaError_t gather(const void* points, const int64_t* indices, int64_t batch, int64_t count, int64_t queries,
                   int64_t channels, void* out, cudaStream_t stream) {
  gather_kernel<<<blocks_for(batch * queries * channels, kThreads), kThreads, 0, stream>>>(
      static_cast<const E*>(points), indices, batch, count, queries, channels, static_cast<E*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t gather_points(const void* points, const int64_t* indices, int64_t batch, int64_t count,
                          int64_t queries, int64_t channels, int64_t element_bytes, void* out,
                          cudaStream_t stream) {
  if (batch * queries * channels == 0) return cudaSuccess;
  switch (element_bytes) {
    case 1: return gather<uint8_t>(points, indices, batch, count, queries, channels, out, stream);
    case 2: return gather<uint16_t>(points, indices, batch, count, queries, channels, out, stream);
    case 4: return gather<uint32_t>(points, indices, batch, count, queries, channels, out, stream);
    case 8: return gather<uint64_t>(points, indices, batch, count, queries, channels, out, stream);
    case 16: return gather<ulonglong2>(points, indices, batch, count, queries, channels, out, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <typename T>
cudaError_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t batch, int64_t count,
                        int64_t queries, int64_t channels, int64_t k, T* out, cudaStream_t stream) {
  if (batch * queries * channels == 0) return cudaSuccess;
  interpolate_kernel<<<blocks_for(batch * queries * channels, kThreads), kThreads, 0, stream>>>(
      points, indices, weights, batch, count, queries, channels, k, out);
  return cudaGetLastError();
}

template cudaError_t interpolate(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, int64_t,
                                 int64_t, float*, cudaStream_t);
template cudaError_t interpolate(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t,
                                 int64_t, int64_t, double*, cudaStream_t);

}  // namespace pax::cuda
