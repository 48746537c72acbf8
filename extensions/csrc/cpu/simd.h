// Shared by the kernels whose inner loops the compiler vectorises.
#pragma once

#include <cstdint>

// Compiles a function twice, for any x86-64 and for AVX2, and picks one when the library loads. Without
// fused multiply-add both give the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PAX_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define PAX_CLONES
#endif

#if defined(_MSC_VER)
#define PAX_INLINE __forceinline
#define PAX_RESTRICT __restrict
#else
#define PAX_INLINE inline __attribute__((always_inline))
#define PAX_RESTRICT __restrict__
#endif

namespace pax::cpu {

// Points handled together; arrays are padded to a multiple of it so that loops have no remainder.
constexpr int64_t kBlock = 64;

inline int64_t padded(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

}  // namespace pax::cpu
