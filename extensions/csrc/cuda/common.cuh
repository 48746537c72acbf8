// Device helpers shared by the kernels.
#pragma once

// Checks of lengths and indices are part of the kernels' contract, in release builds too.
#undef NDEBUG
#include <cassert>
#include <cstdint>

namespace pax::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxBlocks = 1 << 16;  // kernels stride over the rest of their work

inline unsigned blocks_for(int64_t work, int64_t per_block) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <typename T>
__device__ __forceinline__ T infinity();
template <>
__device__ __forceinline__ float infinity<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ __forceinline__ double infinity<double>() {
  return __longlong_as_double(0x7ff0000000000000LL);
}

// How many of the `full` points of a cloud are real.
__device__ __forceinline__ int64_t length_of(const int64_t* lengths, int64_t cloud, int64_t full) {
  if (lengths == nullptr) return full;
  const int64_t length = lengths[cloud];
  assert(length >= 1 && length <= full && "length of a cloud out of range");
  return length;
}

// NaN counts as infinite.
template <typename T>
__device__ __forceinline__ T squared_distance(const T* a, const T* b, int64_t dims) {
  T sum = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const T difference = a[d] - b[d];
    sum += difference * difference;
  }
  return sum < infinity<T>() ? sum : infinity<T>();
}

}  // namespace pax::cuda
