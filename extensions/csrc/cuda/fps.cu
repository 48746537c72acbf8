#include <cooperative_groups.h>

#include "common.cuh"
#include "kernels.h"

namespace pax::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostBytes = 32;  // of the x of a thread's points, up to which it keeps their coordinates too

template <typename T, typename Index>
struct Farthest {
  T distance;
  Index index;
};

// The larger distance, at equal distances the lower index. Where no candidate is left, all are -1 and index 0 wins.
template <typename T, typename Index>
__device__ __forceinline__ Farthest<T, Index> farther(const Farthest<T, Index>& a, const Farthest<T, Index>& b) {
  const bool second = b.distance > a.distance || (b.distance == a.distance && b.index < a.index);
  return second ? b : a;
}

// Of all lanes, known to each of them.
template <typename T, typename Index>
__device__ __forceinline__ Farthest<T, Index> warp_farthest(Farthest<T, Index> mine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Farthest<T, Index> other{__shfl_xor_sync(kAllLanes, mine.distance, offset),
                                   __shfl_xor_sync(kAllLanes, mine.index, offset)};
    mine = farther(mine, other);
  }
  return mine;
}

// Of all threads of the block, known to each of them. `per_warp` is another one than that of the call before, so that
// a slow warp may still be reading that.
template <typename T, typename Index>
__device__ __forceinline__ Farthest<T, Index> block_farthest(Farthest<T, Index> mine, Farthest<T, Index>* per_warp,
                                                             Index count) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  mine = warp_farthest(mine);
  if (lane == 0) per_warp[warp] = mine;
  __syncthreads();
  return warp_farthest(lane < warps ? per_warp[lane] : Farthest<T, Index>{T(-1), count});
}

template <typename T>
struct Point {
  T x, y, z;
};

template <typename T>
__device__ __forceinline__ Point<T> read(const T* points, int64_t index) {
  return {points[3 * index], points[3 * index + 1], points[3 * index + 2]};
}

template <typename T>
__device__ __forceinline__ T initial(const Point<T>& point, bool skip_origin) {
  const T norm = (point.x * point.x + point.y * point.y) + point.z * point.z;
  return skip_origin && static_cast<double>(norm) <= 1e-3 ? T(-1) : infinity<T>();
}

// What is left of `nearest` of a point after a new centre.
template <typename T>
__device__ __forceinline__ T lowered(T nearest, const Point<T>& point, const Point<T>& centre) {
  const T dx = centre.x - point.x, dy = centre.y - point.y, dz = centre.z - point.z;
  const T distance = (dx * dx + dy * dy) + dz * dz;
  return distance < nearest ? distance : nearest;
}

// One block per cloud of at most blockDim.x * kPer points. Each thread keeps the distances of the points thread, thread +
// blockDim.x, … in registers, and their coordinates if kKeep.
template <typename T, int kPer, bool kKeep>
__global__ void __launch_bounds__(kMostThreads)
    fps_in_registers(const T* __restrict__ all_points, const int64_t* __restrict__ lengths, int64_t batch, int full,
                     int64_t samples, int start, bool skip_origin, int64_t* __restrict__ all_chosen) {
  __shared__ Farthest<T, int> per_warp[2][kWarp];
  const int step = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const int count = static_cast<int>(length_of(lengths, b, full));
    assert(start < count && "farthest_point_sample: start behind the length of a cloud");
    const T* points = all_points + b * full * 3;
    int64_t* chosen = all_chosen + b * samples;
    T nearest[kPer];
    Point<T> kept[kKeep ? kPer : 1];
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = thread + j * step;
      nearest[j] = T(-1);
      if (i < count) {
        const Point<T> point = read(points, i);
        nearest[j] = initial(point, skip_origin);
        if (kKeep) kept[j] = point;
      }
    }
    int current = start;
    for (int64_t s = 0; s < samples; ++s) {
      if (thread == 0) chosen[s] = current;
      const Point<T> centre = read(points, current);
      Farthest<T, int> mine{T(-1), thread == 0 ? 0 : count};
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int i = thread + j * step;
        if (i >= count) continue;
        nearest[j] = lowered(nearest[j], kKeep ? kept[j] : read(points, i), centre);
        if (!skip_origin && i == current) nearest[j] = T(-1);
        if (nearest[j] > mine.distance) mine = {nearest[j], i};
      }
      current = block_farthest(mine, per_warp[s % 2], count).index;
    }
    __syncthreads();  // `per_warp` serves the next cloud
  }
}

// Several blocks for one cloud after the other, which wait for each other after each sample; a cooperative launch.
// nearest: scratch (batch, count); partial: scratch (2, gridDim.x).
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    fps_by_grid(const T* __restrict__ all_points, const int64_t* __restrict__ lengths, int64_t batch, int64_t full,
                int64_t samples, int64_t start, bool skip_origin, T* __restrict__ all_nearest,
                Farthest<T, int64_t>* partial, int64_t* __restrict__ all_chosen) {
  using Best = Farthest<T, int64_t>;
  __shared__ Best per_warp[2][kWarp];
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int lane = threadIdx.x % kWarp;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = length_of(lengths, b, full);
    assert(start < count && "farthest_point_sample: start behind the length of a cloud");
    const T* points = all_points + b * full * 3;
    T* nearest = all_nearest + b * full;  // each thread reads and writes its own points alone
    int64_t* chosen = all_chosen + b * samples;
    for (int64_t i = first; i < count; i += stride) nearest[i] = initial(read(points, i), skip_origin);
    int64_t current = start;
    for (int64_t s = 0; s < samples; ++s) {
      if (first == 0) chosen[s] = current;
      const Point<T> centre = read(points, current);
      Best mine{T(-1), first == 0 ? 0 : count};
      for (int64_t i = first; i < count; i += stride) {
        T lowest = lowered(nearest[i], read(points, i), centre);
        if (!skip_origin && i == current) lowest = T(-1);
        nearest[i] = lowest;
        if (lowest > mine.distance) mine = {lowest, i};
      }
      mine = block_farthest(mine, per_warp[s % 2], count);
      Best* of_blocks = partial + (s % 2) * gridDim.x;
      if (threadIdx.x == 0) of_blocks[blockIdx.x] = mine;
      grid.sync();
      mine = {T(-1), count};
      for (unsigned block = lane; block < gridDim.x; block += kWarp) {
        const volatile Best* other = of_blocks + block;  // written by other blocks
        mine = farther(mine, Best{other->distance, other->index});
      }
      current = warp_farthest(mine).index;
    }
    grid.sync();  // `partial` and `per_warp` serve the next cloud
  }
}

template <typename T, int kPer>
cudaError_t launch_in_registers(const T* points, const int64_t* lengths, int64_t batch, int64_t count, int64_t samples,
                                int64_t start, bool skip_origin, int64_t* chosen, cudaStream_t stream) {
  unsigned threads = kWarp;
  while (threads < kMostThreads && static_cast<int64_t>(threads) * kPer < count) threads *= 2;
  fps_in_registers<T, kPer, kPer * sizeof(T) <= kMostBytes>
      <<<blocks_for(batch, 1), threads, 0, stream>>>(points, lengths, batch, static_cast<int>(count), samples,
                                                     static_cast<int>(start), skip_origin, chosen);
  return cudaGetLastError();
}

}  // namespace

template <typename T>
cudaError_t farthest_point_sample(const T* points, int64_t batch, int64_t count, int64_t samples, int64_t start,
                                  bool skip_origin, T* nearest, void* partial, int64_t* chosen, cudaStream_t stream,
                                  const int64_t* lengths) {
  if (batch == 0 || samples == 0) return cudaSuccess;
  if (count <= 4 * kMostThreads)
    return launch_in_registers<T, 4>(points, lengths, batch, count, samples, start, skip_origin, chosen, stream);
  if (count <= 8 * kMostThreads)
    return launch_in_registers<T, 8>(points, lengths, batch, count, samples, start, skip_origin, chosen, stream);
  if (count <= kFpsInRegisters)
    return launch_in_registers<T, 16>(points, lengths, batch, count, samples, start, skip_origin, chosen, stream);

  int device = 0, processors = 0, per_processor = 0, cooperative = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error == cudaSuccess && cooperative == 0) return cudaErrorNotSupported;
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, fps_by_grid<T>, kMostThreads, 0);
  if (error != cudaSuccess) {
    cudaGetLastError();  // as below
    return error;
  }
  const int64_t useful = (count + kMostThreads - 1) / kMostThreads, fitting = int64_t(processors) * per_processor;
  const int64_t blocks = useful < fitting ? useful : fitting;
  auto* of_blocks = static_cast<Farthest<T, int64_t>*>(partial);
  const int64_t room = kFpsPartialBytes / static_cast<int64_t>(2 * sizeof(*of_blocks));
  void* arguments[] = {&points, &lengths,     &batch,   &count,     &samples,
                       &start,  &skip_origin, &nearest, &of_blocks, &chosen};
  error = cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(fps_by_grid<T>),
                                      static_cast<unsigned>(blocks < room ? blocks : room), kMostThreads, arguments, 0,
                                      stream);
  cudaGetLastError();  // it is returned here, and not to be found again by who asks next
  return error;
}

template cudaError_t farthest_point_sample(const float*, int64_t, int64_t, int64_t, int64_t, bool, float*, void*,
                                           int64_t*, cudaStream_t, const int64_t*);
template cudaError_t farthest_point_sample(const double*, int64_t, int64_t, int64_t, int64_t, bool, double*, void*,
                                           int64_t*, cudaStream_t, const int64_t*);

}  // namespace pax::cuda
