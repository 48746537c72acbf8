// Vectors, and a choice of instruction set when the program runs.
//
// Every kernel is compiled for vectors of 64 bytes with AVX-512, of 32 with AVX2, and of 16 with what every x86-64 or
// ARM64 has, and picks one by `simd_level()`. Without fused multiply-add all give the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if !defined(__GNUC__) && !defined(__clang__)
#error "the kernels need the vector types of GCC or Clang"
#endif

#define PAX_INLINE inline __attribute__((always_inline))

// Vectors are passed between functions that are always inlined, so their calling convention does not matter.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

// PAX_DISPATCH(int, name, (int a), (a), body) defines `int name(int a)`, which runs body<Bytes>(a), a function that is
// always inlined, compiled for the instructions of the caller.
#if defined(__x86_64__)
#define PAX_DISPATCH(result, name, parameters, arguments, body)                                     \
  __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw"))) static result name##_avx512 parameters { \
    return body<64> arguments;                                                                      \
  }                                                                                                 \
  __attribute__((target("avx2"))) static result name##_avx2 parameters { return body<32> arguments; } \
  static result name##_baseline parameters { return body<16> arguments; }                           \
  static inline result name parameters {                                                            \
    switch (simd_level()) {                                                                         \
      case SimdLevel::avx512: return name##_avx512 arguments;                                       \
      case SimdLevel::avx2: return name##_avx2 arguments;                                           \
      default: return name##_baseline arguments;                                                    \
    }                                                                                               \
  }
#else
#define PAX_DISPATCH(result, name, parameters, arguments, body) \
  static inline result name parameters { return body<16> arguments; }
#endif

namespace pax::cpu {

enum class SimdLevel { baseline, avx2, avx512 };

// What this processor can do, or less where POINTADAPTERX_SIMD (avx512, avx2 or baseline) says so.
SimdLevel simd_level();
const char* simd_name();

// Arrays that kernels read are padded to a multiple of it, so that loops have no remainder: four of the longest vectors.
constexpr int64_t kBlock = 64;
inline int64_t padded(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

// A vector of as many T as fit into `Bytes`.
template <int Bytes, typename T>
struct Simd {
  typedef T Vector __attribute__((vector_size(Bytes)));
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Integer Mask __attribute__((vector_size(Bytes)));  // -1 where true, 0 where false
  typedef std::uint32_t Bits __attribute__((vector_size(Bytes)));
  static constexpr int64_t kWidth = Bytes / static_cast<int64_t>(sizeof(T));

  static PAX_INLINE Vector load(const T* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
  }
  static PAX_INLINE void store(T* to, const Vector& vector) { std::memcpy(to, &vector, sizeof vector); }
  static PAX_INLINE Vector every(T value) { return value - Vector{}; }
  static PAX_INLINE Vector least(const Vector& a, const Vector& b) { return a < b ? a : b; }
  static PAX_INLINE Vector most(const Vector& a, const Vector& b) { return a > b ? a : b; }

  // The largest lane.
  static PAX_INLINE T maximum(const Vector& vector) {
    if constexpr (Bytes > 16) {
      using Half = Simd<Bytes / 2, T>;
      typename Half::Vector halves[2];
      std::memcpy(halves, &vector, sizeof vector);
      return Half::maximum(Half::most(halves[0], halves[1]));
    } else {
      T best = vector[0];
      for (int64_t lane = 1; lane < kWidth; ++lane) best = vector[lane] > best ? vector[lane] : best;
      return best;
    }
  }
  static PAX_INLINE T sum(const Vector& vector) {
    if constexpr (Bytes > 16) {
      using Half = Simd<Bytes / 2, T>;
      typename Half::Vector halves[2];
      std::memcpy(halves, &vector, sizeof vector);
      return Half::sum(halves[0] + halves[1]);
    } else {
      T total = vector[0];
      for (int64_t lane = 1; lane < kWidth; ++lane) total += vector[lane];
      return total;
    }
  }
  // Whether any lane is true.
  static PAX_INLINE bool any(const Mask& mask) { return folded(mask) != 0; }
  // One bit for each lane that is true, lane 0 the lowest.
  static PAX_INLINE std::uint64_t bits(const Mask& mask) {
    Mask weights;
    for (int64_t lane = 0; lane < kWidth; ++lane) weights[lane] = Integer(1) << lane;
    const std::uint64_t words = folded(mask & weights);
    return sizeof(T) == 8 ? words : (words | words >> 32) & 0xffffffffu;
  }

 private:
  // All words of 64 bits, or-ed together.
  static PAX_INLINE std::uint64_t folded(const Mask& mask) {
    if constexpr (Bytes > 16) {
      using Half = Simd<Bytes / 2, T>;
      typename Half::Mask halves[2];
      std::memcpy(halves, &mask, sizeof mask);
      return Half::folded(halves[0] | halves[1]);
    } else {
      std::uint64_t words[2];
      std::memcpy(words, &mask, sizeof mask);
      return words[0] | words[1];
    }
  }
  template <int, typename>
  friend struct Simd;
};

// Rows of floats are padded to it for `dot` and its like.
constexpr int64_t kLanes = 16;

// Σ a b of rows padded to kLanes, in as many sums whatever the vectors' length, so that all instruction sets give the
// same bits.
template <int Bytes>
PAX_INLINE float dot(const float* a, const float* b, int64_t size) {
  using S = Simd<Bytes, float>;
  constexpr int64_t kSums = kLanes / S::kWidth;
  typename S::Vector sums[kSums] = {};
  for (int64_t i = 0; i < size; i += kLanes)
    for (int64_t s = 0; s < kSums; ++s) sums[s] += S::load(a + i + s * S::kWidth) * S::load(b + i + s * S::kWidth);
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  return S::sum(sums[0]);
}

}  // namespace pax::cpu
