// What the project's .cu files use of CUDA, for a C++ compiler. emulator.cpp runs each CUDA thread as a fiber of its own
// and checks every load and store, of which -fsanitize=thread tells it. Memory is ordered by __syncwarp, __syncthreads and
// grid.sync() alone: CUDA does not say that shuffles and votes order any. What is missing here does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrCooperativeLaunch = 95 };

namespace emu {

enum class Warp { sync, ballot, from, exclusive, down };

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();
[[noreturn]] void fail(const char* text, int line);
void* shared_memory(size_t bytes, int line);
void block_barrier(int line);
void grid_barrier(int line);
uint64_t warp_wide(Warp operation, unsigned mask, uint64_t value, int argument, int line);

// Calls call(body) in every thread. What the body has captured, `bytes` of it, threads may read.
cudaError_t run(const Launch& launch, bool cooperative, const void* body, size_t bytes, void (*call)(const void*));

// What `kernel<<<grid, block, bytes, stream>>>(arguments)` has become.
template <typename Body>
void launch(const Launch& launch, const Body& body) {
  run(launch, false, &body, sizeof body, [](const void* of) { (*static_cast<const Body*>(of))(); });
}

// What `__shared__ T name` has become: `T& name`, one variable for a line.
template <typename T>
T& shared(int line) {
  return *static_cast<T*>(shared_memory(sizeof(T), line));
}

using Cooperative = cudaError_t (*)(const void* kernel, const Launch& launch, void** arguments);
void know_kernel(const void* kernel, Cooperative launch);

template <typename... Parameters>
cudaError_t launch_cooperative(const void* kernel, const Launch& launch, void** arguments) {
  using Kernel = void (*)(Parameters...);
  using Body = std::pair<Kernel, std::tuple<std::remove_cv_t<Parameters>...>>;
  const Body body = [&]<size_t... i>(std::index_sequence<i...>) {
    return Body{reinterpret_cast<Kernel>(const_cast<void*>(kernel)),
                {*static_cast<std::remove_cv_t<Parameters>*>(arguments[i])...}};
  }(std::index_sequence_for<Parameters...>{});
  return run(launch, true, &body, sizeof body, [](const void* of) {
    const Body& body = *static_cast<const Body*>(of);
    std::apply(body.first, body.second);
  });
}

template <typename T>
T shuffle(Warp operation, unsigned mask, T value, int argument, int line) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_wide(operation, mask, bits, argument, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())

inline void __syncthreads(int line = __builtin_LINE()) { emu::block_barrier(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emu::warp_wide(emu::Warp::sync, mask, 0, 0, line);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  return static_cast<unsigned>(emu::warp_wide(emu::Warp::ballot, mask, predicate, 0, line));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  return emu::shuffle(emu::Warp::from, mask, value, lane, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
  return emu::shuffle(emu::Warp::exclusive, mask, value, bits, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  return emu::shuffle(emu::Warp::down, mask, value, by, line);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <typename To, typename From>
To emu_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __int_as_float(int bits) { return emu_bits<float>(bits); }
inline double __longlong_as_double(long long bits) { return emu_bits<double>(bits); }

namespace cooperative_groups {
struct grid_group {
  void sync(int line = __builtin_LINE()) const { emu::grid_barrier(line); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t bytes,
                                        cudaStream_t stream);
namespace emu {
int blocks_per_processor();
}
// Learns the type of the kernel, too, which cudaLaunchCooperativeKernel does not see.
template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int, size_t) {
  emu::know_kernel(reinterpret_cast<const void*>(kernel), emu::launch_cooperative<Parameters...>);
  *blocks = emu::blocks_per_processor();
  return cudaSuccess;
}
