// The normal distribution, and with it GELU, on vectors.
#pragma once

#include <cstring>

#include "simd.h"

namespace pax::cpu {

// e^-y for y in [0, 87], to some units in the last place: 2^n times a polynomial of the rest.
template <int Bytes>
PAX_INLINE auto exp_of_minus(const typename Simd<Bytes, float>::Vector& y) {
  using S = Simd<Bytes, float>;
  constexpr float kRounds = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to an integer, in its low bits
  const auto shifted = y * -1.44269504f + kRounds;
  const auto f = -y - (shifted - kRounds) * 0.693147181f;
  const auto polynomial =
      1.0f + f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
  typename S::Mask power;
  std::memcpy(&power, &shifted, sizeof power);
  power = (power - 0x4B400000 + 127) << 23;
  typename S::Vector scale;
  std::memcpy(&scale, &power, sizeof scale);
  return polynomial * scale;
}

// The normal distribution function Φ(x), and its derivative φ(x), absolute error 1e-7 (Abramowitz and Stegun, 7.1.26).
template <int Bytes>
PAX_INLINE void normal(const typename Simd<Bytes, float>::Vector& x, typename Simd<Bytes, float>::Vector& distribution,
                       typename Simd<Bytes, float>::Vector& density) {
  using S = Simd<Bytes, float>;
  const auto size = x < 0 ? -x : x;
  const auto bell = exp_of_minus<Bytes>(S::least(0.5f * x * x, S::every(87.0f)));
  const auto t = 1.0f / (1.0f + 0.231641888f * size);
  const auto tail = bell * t *
                    (0.127414796f + t * (-0.142248368f + t * (0.710706871f + t * (-0.726576013f + t * 0.530702714f))));
  distribution = x < 0 ? tail : 1.0f - tail;
  density = 0.398942280f * bell;
}

}  // namespace pax::cpu
