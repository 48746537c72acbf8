#include "simd.h"

#include <strings.h>

#include <cstdlib>

namespace pax::cpu {
namespace {

SimdLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return SimdLevel::avx512;
  if (__builtin_cpu_supports("avx2")) return SimdLevel::avx2;
#endif
  return SimdLevel::baseline;
}

SimdLevel chosen_level() {
  const SimdLevel best = best_level();
  const char* name = std::getenv("POINTADAPTERX_SIMD");
  if (name == nullptr) return best;
  if (strcasecmp(name, "baseline") == 0) return SimdLevel::baseline;
  if (strcasecmp(name, "avx2") == 0 && best == SimdLevel::avx512) return SimdLevel::avx2;
  return best;
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = chosen_level();
  return level;
}

const char* simd_name() {
#if defined(__x86_64__)
  constexpr const char* kBaseline = "SSE2";
#elif defined(__aarch64__)
  constexpr const char* kBaseline = "NEON";
#else
  constexpr const char* kBaseline = "baseline";
#endif
  switch (simd_level()) {
    case SimdLevel::avx512: return "AVX-512";
    case SimdLevel::avx2: return "AVX2";
    default: return kBaseline;
  }
}

}  // namespace pax::cpu
