#include "common.cuh"
#include "kernels.h"

namespace pax::cuda {
namespace {

template <typename T>
struct Farthest {
  T distance;
  int64_t index;
};

// The larger distance, at equal distances the lower index.
template <typename T>
__device__ __forceinline__ Farthest<T> farther(const Farthest<T>& a, const Farthest<T>& b) {
  const bool second = b.distance > a.distance || (b.distance == a.distance && b.index < a.index);
  return second ? b : a;
}

template <typename T>
__device__ __forceinline__ Farthest<T> warp_farthest(Farthest<T> mine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Farthest<T> other{__shfl_down_sync(kAllLanes, mine.distance, offset),
                            __shfl_down_sync(kAllLanes, mine.index, offset)};
    mine = farther(mine, other);
  }
  return mine;
}

// One block per cloud; blockDim.x is a multiple of the warp. Each thread owns the points thread, thread +
// blockDim.x, …, whose distances nobody else reads or writes.
template <typename T>
__global__ void fps_kernel(const T* __restrict__ all_points, int64_t batch, int64_t count, int64_t samples,
                           int64_t start, bool skip_origin, T* __restrict__ all_nearest,
                           int64_t* __restrict__ all_chosen) {
  __shared__ Farthest<T> per_warp[kWarp];
  __shared__ int64_t winner;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;

  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const T* points = all_points + b * count * 3;
    T* nearest = all_nearest + b * count;
    int64_t* chosen = all_chosen + b * samples;

    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const T x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
      const T norm = (x * x + y * y) + z * z;
      const bool candidate = !(skip_origin && static_cast<double>(norm) <= 1e-3);
      nearest[i] = candidate ? infinity<T>() : T(-1);
    }
    int64_t current = start;
    for (int64_t s = 0; s < samples; ++s) {
      if (threadIdx.x == 0) chosen[s] = current;
      const T cx = points[3 * current], cy = points[3 * current + 1], cz = points[3 * current + 2];
      // Index 0 wins when there is no candidate, whose distances are all -1.
      Farthest<T> mine{T(-1), threadIdx.x == 0 ? 0 : count};
      for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        const T dx = cx - points[3 * i], dy = cy - points[3 * i + 1], dz = cz - points[3 * i + 2];
        const T distance = (dx * dx + dy * dy) + dz * dz;
        T lowest = nearest[i];
        lowest = distance < lowest ? distance : lowest;
        if (!skip_origin && i == current) lowest = T(-1);
        nearest[i] = lowest;
        if (lowest > mine.distance) mine = {lowest, i};
      }
      mine = warp_farthest(mine);
      if (lane == 0) per_warp[warp] = mine;
      __syncthreads();
      if (warp == 0) {
        mine = lane < warps ? per_warp[lane] : Farthest<T>{T(-1), count};
        mine = warp_farthest(mine);
        if (lane == 0) winner = mine.index;
      }
      __syncthreads();
      current = winner;
    }
    __syncthreads();  // `winner` and `per_warp` serve the next cloud
  }
}

}  // namespace

template <typename T>
cudaError_t farthest_point_sample(const T* points, int64_t batch, int64_t count, int64_t samples, int64_t start,
                                  bool skip_origin, T* nearest, int64_t* chosen, cudaStream_t stream) {
  if (batch == 0 || samples == 0) return cudaSuccess;
  unsigned threads = kWarp;
  while (threads < 1024 && threads < count) threads *= 2;
  fps_kernel<<<blocks_for(batch, 1), threads, 0, stream>>>(points, batch, count, samples, start, skip_origin,
                                                          nearest, chosen);
  return cudaGetLastError();
}

template cudaError_t farthest_point_sample(const float*, int64_t, int64_t, int64_t, int64_t, bool, float*,
                                           int64_t*, cudaStream_t);
template cudaError_t farthest_point_sample(const double*, int64_t, int64_t, int64_t, int64_t, bool, double*,
                                           int64_t*, cudaStream_t);

}  // namespace pax::cuda
