#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace pax::cpu {
namespace {

PAX_INLINE float as_float(float value) { return value; }

PAX_INLINE float as_float(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// In sixteen sums whatever the vectors' length, so that all instruction sets give the same bits.
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

// to += factor * from
template <int Bytes>
PAX_INLINE void add_scaled(float* to, float factor, const float* from, int64_t size) {
  using S = Simd<Bytes, float>;
  for (int64_t i = 0; i < size; i += S::kWidth) S::store(to + i, S::load(to + i) + factor * S::load(from + i));
}

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

// hidden = down_out · code + bias
template <int Bytes>
PAX_INLINE void expand(const Experts& experts, int64_t expert, const float* code, float* hidden) {
  using S = Simd<Bytes, float>;
  const float* matrix = experts.down_out + expert * experts.inner * experts.rank;
  const float* bias = experts.bias + expert * experts.rank;
  for (int64_t i = 0; i < experts.rank; i += S::kWidth) {
    auto total = S::load(bias + i);
    for (int64_t j = 0; j < experts.inner; ++j) total += code[j] * S::load(matrix + j * experts.rank + i);
    S::store(hidden + i, total);
  }
}

template <int Bytes, typename T>
PAX_INLINE void forward(const Experts& experts, const T* tokens, int64_t rows, int64_t width, float* gates,
                        int64_t* chosen, float* inner, float* codes) {
  using S = Simd<Bytes, float>;
  const int64_t number = experts.number, size = experts.inner;
  std::vector<float> token(static_cast<std::size_t>(experts.width)), hidden(static_cast<std::size_t>(experts.rank));
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = tokens + row * width;
    for (int64_t i = 0; i < width; ++i) token[i] = as_float(from[i]);

    float* gate = gates + row * number;
    int64_t best = 0;
    for (int64_t e = 0; e < number; ++e) {
      gate[e] = dot<Bytes>(experts.router + e * experts.width, token.data(), experts.width);
      if (gate[e] > gate[best]) best = e;
    }
    const float highest = gate[best];
    float total = 0;
    for (int64_t e = 0; e < number; ++e) total += gate[e] = std::exp(gate[e] - highest);
    for (int64_t e = 0; e < number; ++e) gate[e] /= total;
    if (total != total) best = 0;  // as torch chooses among gates that are not numbers
    chosen[row] = best;

    float* in = inner + row * size;
    for (int64_t j = 0; j < size; ++j)
      in[j] = dot<Bytes>(experts.down_in + (best * size + j) * experts.width, token.data(), experts.width);
    expand<Bytes>(experts, best, in, hidden.data());
    for (int64_t i = 0; i < experts.rank; i += S::kWidth) {
      const auto x = S::load(hidden.data() + i);
      typename S::Vector distribution, density;
      normal<Bytes>(x, distribution, density);
      S::store(hidden.data() + i, x * distribution);
    }
    float* code = codes + (row * number + best) * (size + 1);
    for (int64_t j = 0; j < size; ++j)
      code[j] = gate[best] * dot<Bytes>(experts.up_in + (best * size + j) * experts.rank, hidden.data(), experts.rank);
    code[size] = gate[best];
  }
}

template <int Bytes, typename T>
PAX_INLINE void backward(const Experts& experts, const T* tokens, int64_t rows, int64_t width, const float* gates,
                         const int64_t* chosen, const float* inner, const float* codes_gradient,
                         const float* gates_gradient, const ExpertGradients& gradients) {
  using S = Simd<Bytes, float>;
  const int64_t number = experts.number, size = experts.inner, rank = experts.rank;
  std::vector<float> token(static_cast<std::size_t>(experts.width)), hidden(static_cast<std::size_t>(rank)),
      slope(static_cast<std::size_t>(rank)), logits(static_cast<std::size_t>(number)),
      pull(static_cast<std::size_t>(rank));
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = tokens + row * width;
    for (int64_t i = 0; i < width; ++i) token[i] = as_float(from[i]);
    const int64_t best = chosen[row];
    const float* gate = gates + row * number;
    const float* in = inner + row * size;
    const float* code_gradient = codes_gradient + (row * number + best) * (size + 1);

    expand<Bytes>(experts, best, in, hidden.data());
    for (int64_t i = 0; i < rank; i += S::kWidth) {
      const auto x = S::load(hidden.data() + i);
      typename S::Vector distribution, density;
      normal<Bytes>(x, distribution, density);
      S::store(slope.data() + i, distribution + x * density);
      S::store(hidden.data() + i, x * distribution);
      S::store(pull.data() + i, typename S::Vector{});
    }
    float gate_gradient = code_gradient[size];
    for (int64_t j = 0; j < size; ++j) {
      const float* up = experts.up_in + (best * size + j) * rank;
      gate_gradient += code_gradient[j] * dot<Bytes>(up, hidden.data(), rank);
      add_scaled<Bytes>(pull.data(), gate[best] * code_gradient[j], up, rank);
      add_scaled<Bytes>(gradients.up_in + (best * size + j) * rank, gate[best] * code_gradient[j], hidden.data(), rank);
    }
    for (int64_t i = 0; i < rank; i += S::kWidth)
      S::store(pull.data() + i, S::load(pull.data() + i) * S::load(slope.data() + i));
    add_scaled<Bytes>(gradients.bias + best * rank, 1.0f, pull.data(), rank);
    for (int64_t j = 0; j < size; ++j) {
      const int64_t place = best * size + j;
      const float inner_gradient = dot<Bytes>(experts.down_out + place * rank, pull.data(), rank);
      add_scaled<Bytes>(gradients.down_out + place * rank, in[j], pull.data(), rank);
      add_scaled<Bytes>(gradients.down_in + place * experts.width, inner_gradient, token.data(), experts.width);
    }

    float mean = 0;
    for (int64_t e = 0; e < number; ++e) {
      logits[e] = gates_gradient[row * number + e] + (e == best ? gate_gradient : 0.0f);
      mean += gate[e] * logits[e];
    }
    for (int64_t e = 0; e < number; ++e)
      add_scaled<Bytes>(gradients.router + e * experts.width, gate[e] * (logits[e] - mean), token.data(),
                        experts.width);
  }
}

#define PAX_EXPERTS(T)                                                                                              \
  PAX_DISPATCH(void, forward,                                                                                       \
               (const Experts& experts, const T* tokens, int64_t rows, int64_t width, float* gates, int64_t* chosen, \
                float* inner, float* codes),                                                                        \
               (experts, tokens, rows, width, gates, chosen, inner, codes), forward)                                \
  PAX_DISPATCH(void, backward,                                                                                      \
               (const Experts& experts, const T* tokens, int64_t rows, int64_t width, const float* gates,           \
                const int64_t* chosen, const float* inner, const float* codes_gradient,                             \
                const float* gates_gradient, const ExpertGradients& gradients),                                     \
               (experts, tokens, rows, width, gates, chosen, inner, codes_gradient, gates_gradient, gradients),     \
               backward)
PAX_EXPERTS(float)
PAX_EXPERTS(BFloat16)

}  // namespace

template <typename T>
void thin_experts(const Experts& experts, const T* tokens, int64_t rows, int64_t width, float* gates, int64_t* chosen,
                  float* inner, float* codes) {
  forward(experts, tokens, rows, width, gates, chosen, inner, codes);
}

template <typename T>
void thin_experts_backward(const Experts& experts, const T* tokens, int64_t rows, int64_t width, const float* gates,
                           const int64_t* chosen, const float* inner, const float* codes_gradient,
                           const float* gates_gradient, const ExpertGradients& gradients) {
  backward(experts, tokens, rows, width, gates, chosen, inner, codes_gradient, gates_gradient, gradients);
}

template void thin_experts(const Experts&, const float*, int64_t, int64_t, float*, int64_t*, float*, float*);
template void thin_experts(const Experts&, const BFloat16*, int64_t, int64_t, float*, int64_t*, float*, float*);
template void thin_experts_backward(const Experts&, const float*, int64_t, int64_t, const float*, const int64_t*,
                                    const float*, const float*, const float*, const ExpertGradients&);
template void thin_experts_backward(const Experts&, const BFloat16*, int64_t, int64_t, const float*, const int64_t*,
                                    const float*, const float*, const float*, const ExpertGradients&);

}  // namespace pax::cpu
