#include "common.cuh"
#include "kernels.h"

namespace pax::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
// Ranked lists up to this length live in shared memory, longer ones in the output itself.
constexpr int64_t kSharedRanking = 128;

// Calls body(row, query, cloud, count) for each query and the points of its cloud; one warp works on one query. The
// count is 0 for a query behind the length of its cloud.
template <typename T, typename Body>
__device__ __forceinline__ void for_each_query(const Search<T>& search, const Body& body) {
  const int64_t rows = search.batch * search.queries;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp; row < rows;
       row += stride) {
    const int64_t b = row / search.queries;
    const bool real = row - b * search.queries < length_of(search.query_lengths, b, search.queries);
    body(row, search.query + row * search.dims, search.points + b * search.count * search.dims,
         real ? length_of(search.lengths, b, search.count) : 0);
  }
}

// Inserts a candidate that is nearer than the last of `length` ascending entries, after its equals.
// The whole warp takes part; entries move in chunks from the back, so that none is overwritten unread.
template <typename T>
__device__ void insert(T* squared, int64_t* indices, int64_t length, int64_t capacity, T candidate,
                       int64_t index, int lane) {
  const int64_t kept = length < capacity ? length : capacity - 1;  // a full list loses its last entry
  int64_t place = 0;  // entries that stay before the candidate
  for (int64_t begin = 0; begin < kept; begin += kWarp) {
    const bool before = begin + lane < kept && squared[begin + lane] <= candidate;
    const int here = __popc(__ballot_sync(kAllLanes, before));
    place += here;
    if (here < kWarp) break;
  }
  for (int64_t end = kept; end > place; end -= kWarp) {
    const int64_t from = end - 1 - lane;
    const bool moves = from >= place;
    T distance = 0;
    int64_t moved = 0;
    if (moves) {
      distance = squared[from];
      moved = indices[from];
    }
    __syncwarp();
    if (moves) {
      squared[from + 1] = distance;
      indices[from + 1] = moved;
    }
    __syncwarp();
  }
  if (lane == 0) {
    squared[place] = candidate;
    indices[place] = index;
  }
  __syncwarp();
}

template <typename T>
__global__ void knn_kernel(Search<T> search, int64_t k, T* __restrict__ squared, int64_t* __restrict__ indices) {
  __shared__ T shared_squared[kWarpsPerBlock][kSharedRanking];
  __shared__ int64_t shared_indices[kWarpsPerBlock][kSharedRanking];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const bool shared = k <= kSharedRanking;

  for_each_query(search, [&](int64_t row, const T* query, const T* cloud, int64_t count) {
    T* best = shared ? shared_squared[warp] : squared + row * k;
    int64_t* best_index = shared ? shared_indices[warp] : indices + row * k;
    int64_t length = 0;
    for (int64_t begin = 0; begin < count; begin += kWarp) {
      const int64_t mine = begin + lane;
      const bool valid = mine < count;
      const T distance =
          valid ? squared_distance(query, cloud + mine * search.dims, search.dims) : infinity<T>();
      // Candidates enter in index order, and only if strictly nearer, so that ties keep the lowest index.
      unsigned candidates = __ballot_sync(kAllLanes, valid && (length < k || distance < best[k - 1]));
      while (candidates != 0) {
        const int source = __ffs(candidates) - 1;
        candidates &= candidates - 1;
        const T candidate = __shfl_sync(kAllLanes, distance, source);
        const T worst = length < k ? infinity<T>() : best[k - 1];
        __syncwarp();  // every lane has read the list before it changes
        if (length == k && !(candidate < worst)) continue;
        insert(best, best_index, length, k, candidate, begin + source, lane);
        if (length < k) ++length;
      }
    }
    for (int64_t j = length + lane; j < k; j += kWarp) {  // of a cloud of fewer than k points, or of no query
      best[j] = length > 0 ? infinity<T>() : T(0);
      best_index[j] = length > 0 ? best_index[0] : 0;
    }
    if (shared) {
      __syncwarp();
      for (int64_t j = lane; j < k; j += kWarp) {
        squared[row * k + j] = best[j];
        indices[row * k + j] = best_index[j];
      }
      __syncwarp();  // read out before the next query writes
    }
  });
}

template <typename T>
__global__ void nearest_kernel(Search<T> search, T* __restrict__ squared, int64_t* __restrict__ indices) {
  const int lane = threadIdx.x % kWarp;
  for_each_query(search, [&](int64_t row, const T* query, const T* cloud, int64_t count) {
    T best = infinity<T>();
    int64_t index = lane == 0 ? 0 : count;  // 0 if every distance is infinite
    for (int64_t i = lane; i < count; i += kWarp) {
      const T distance = squared_distance(query, cloud + i * search.dims, search.dims);
      if (distance < best) {
        best = distance;
        index = i;
      }
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const T other = __shfl_down_sync(kAllLanes, best, offset);
      const int64_t other_index = __shfl_down_sync(kAllLanes, index, offset);
      if (other < best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
    if (lane == 0) {
      squared[row] = best;
      indices[row] = index;
    }
  });
}

template <typename T>
__global__ void ball_query_kernel(Search<T> search, T limit, int64_t samples, int64_t* __restrict__ indices,
                                  int64_t* __restrict__ counts) {
  const int lane = threadIdx.x % kWarp;
  for_each_query(search, [&](int64_t row, const T* query, const T* cloud, int64_t count) {
    int64_t* found = indices + row * samples;
    int64_t number = 0, first = 0;
    for (int64_t begin = 0; begin < count && number < samples; begin += kWarp) {
      const int64_t mine = begin + lane;
      const bool inside =
          mine < count && squared_distance(query, cloud + mine * search.dims, search.dims) < limit;
      const unsigned hits = __ballot_sync(kAllLanes, inside);
      if (number == 0 && hits != 0) first = begin + __ffs(hits) - 1;
      const int64_t place = number + __popc(hits & ((1u << lane) - 1));
      if (inside && place < samples) found[place] = mine;
      number += __popc(hits);
    }
    number = number < samples ? number : samples;
    for (int64_t place = number + lane; place < samples; place += kWarp) found[place] = first;
    if (lane == 0) counts[row] = number;
  });
}

template <typename T>
unsigned grid(const Search<T>& search) {
  return blocks_for(search.batch * search.queries, kWarpsPerBlock);
}

constexpr unsigned kThreads = kWarpsPerBlock * kWarp;

}  // namespace

template <typename T>
cudaError_t knn(const Search<T>& search, int64_t k, T* squared, int64_t* indices, cudaStream_t stream) {
  if (grid(search) == 0) return cudaSuccess;
  knn_kernel<<<grid(search), kThreads, 0, stream>>>(search, k, squared, indices);
  return cudaGetLastError();
}

template <typename T>
cudaError_t nearest(const Search<T>& search, T* squared, int64_t* indices, cudaStream_t stream) {
  if (grid(search) == 0) return cudaSuccess;
  nearest_kernel<<<grid(search), kThreads, 0, stream>>>(search, squared, indices);
  return cudaGetLastError();
}

template <typename T>
cudaError_t ball_query(const Search<T>& search, double radius, int64_t samples, int64_t* indices,
                       int64_t* counts, cudaStream_t stream) {
  if (grid(search) == 0) return cudaSuccess;
  const T limit = static_cast<T>(radius) * static_cast<T>(radius);
  ball_query_kernel<<<grid(search), kThreads, 0, stream>>>(search, limit, samples, indices, counts);
  return cudaGetLastError();
}

#define PAX_INSTANTIATE(T)                                                                  \
  template cudaError_t knn(const Search<T>&, int64_t, T*, int64_t*, cudaStream_t);          \
  template cudaError_t nearest(const Search<T>&, T*, int64_t*, cudaStream_t);               \
  template cudaError_t ball_query(const Search<T>&, double, int64_t, int64_t*, int64_t*, cudaStream_t);
PAX_INSTANTIATE(float)
PAX_INSTANTIATE(double)
#undef PAX_INSTANTIATE

}  // namespace pax::cuda
