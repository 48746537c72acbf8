#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "kernels.h"
#include "normal.h"
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

// kRows sub-tokens of one expert on their way through it, in rows that are filled up with zeros; rows without a sub-token
// are zero.
struct Block {
  explicit Block(const Experts& x)
      : tokens(zeros(kRows * x.width)),
        inner(zeros(kRows * x.inner_stride)),
        hidden(zeros(kRows * x.rank)),
        slope(zeros(kRows * x.rank)),
        code(zeros(kRows * x.inner_stride)) {}
  Buffer tokens, inner, hidden, slope, code;
};

template <typename T>
PAX_INLINE void take(const T* from, int64_t width, float* row) {
  for (int64_t i = 0; i < width; ++i) row[i] = as_float(from[i]);
}

// inner -> hidden, GELU of the next layer, and with Slopes its derivative, and code, of the layer behind it.
template <int Bytes, bool Slopes>
PAX_INLINE void through(const Experts& x, int64_t expert, Block& block) {
  using S = Simd<Bytes, float>;
  const float* bias = x.bias + expert * x.rank;
  for (int64_t row = 0; row < kRows; ++row) std::copy(bias, bias + x.rank, block.hidden.begin() + row * x.rank);
  multiply<Bytes, true>(block.inner.data(), x.inner_stride, x.down_out + expert * x.inner * x.rank, x.inner, x.rank,
                        block.hidden.data(), x.rank);
  for (int64_t i = 0; i < kRows * x.rank; i += S::kWidth) {
    const auto value = S::load(block.hidden.data() + i);
    typename S::Vector distribution, density;
    normal<Bytes>(value, distribution, density);
    if constexpr (Slopes) S::store(block.slope.data() + i, distribution + value * density);
    S::store(block.hidden.data() + i, value * distribution);
  }
  multiply<Bytes, false>(block.hidden.data(), x.rank, x.up_in_across + expert * x.rank * x.inner_stride, x.rank,
                         x.inner_stride, block.code.data(), x.inner_stride);
}

template <int Bytes, typename T>
PAX_INLINE void forward(const Experts& x, const T* tokens, int64_t rows, int64_t width, float* gates, int64_t* chosen,
                        float* inner, float* codes) {
  Block block(x);
  Buffer scores = zeros(kRows * x.number_stride);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t here = std::min(kRows, rows - first);
    for (int64_t row = 0; row < here; ++row)
      take(tokens + (first + row) * width, width, block.tokens.data() + row * x.width);
    multiply<Bytes, false>(block.tokens.data(), x.width, x.router_across, width, x.number_stride, scores.data(),
                           x.number_stride);
    for (int64_t row = 0; row < here; ++row)
      chosen[first + row] = softmax<Bytes>(scores.data() + row * x.number_stride, x.number, x.number_stride,
                                           gates + (first + row) * x.number);
  }
  const Groups groups(chosen, rows, x.number);
  for (int64_t e = 0; e < x.number; ++e) {
    for (int64_t first = groups.begin[e]; first < groups.begin[e + 1]; first += kRows) {
      const int64_t here = std::min(kRows, groups.begin[e + 1] - first);
      const int64_t* place = groups.order.data() + first;
      for (int64_t row = 0; row < here; ++row)
        take(tokens + place[row] * width, width, block.tokens.data() + row * x.width);
      multiply<Bytes, false>(block.tokens.data(), x.width, x.down_in_across + e * width * x.inner_stride, width,
                             x.inner_stride, block.inner.data(), x.inner_stride);
      through<Bytes, false>(x, e, block);
      for (int64_t row = 0; row < here; ++row) {
        const float *in = block.inner.data() + row * x.inner_stride, *out = block.code.data() + row * x.inner_stride;
        const float gate = gates[place[row] * x.number + e];
        float* code = codes + (place[row] * x.number + e) * (x.inner + 1);
        std::copy(in, in + x.inner, inner + place[row] * x.inner);
        for (int64_t j = 0; j < x.inner; ++j) code[j] = gate * out[j];
        code[x.inner] = gate;
      }
    }
  }
}

template <int Bytes, typename T>
PAX_INLINE void backward(const Experts& x, const T* tokens, int64_t rows, int64_t width, const float* gates,
                         const int64_t* chosen, const float* inner, const float* codes_gradient,
                         const float* gates_gradient, const ExpertGradients& to) {
  using S = Simd<Bytes, float>;
  const Groups groups(chosen, rows, x.number);
  Block block(x);
  Buffer of_code = zeros(kRows * x.inner_stride), of_inner = zeros(kRows * x.inner_stride),
         of_hidden = zeros(kRows * x.rank), of_scores = zeros(kRows * x.number_stride);
  for (int64_t e = 0; e < x.number; ++e) {
    for (int64_t first = groups.begin[e]; first < groups.begin[e + 1]; first += kRows) {
      const int64_t here = std::min(kRows, groups.begin[e + 1] - first);
      const int64_t* place = groups.order.data() + first;
      if (here < kRows)
        for (Buffer* rest : {&block.tokens, &block.inner, &of_code, &of_scores}) {
          const auto each = static_cast<int64_t>(rest->size()) / kRows;
          std::fill(rest->begin() + here * each, rest->end(), 0.0f);
        }
      for (int64_t row = 0; row < here; ++row) {
        take(tokens + place[row] * width, width, block.tokens.data() + row * x.width);
        std::copy(inner + place[row] * x.inner, inner + (place[row] + 1) * x.inner,
                  block.inner.begin() + row * x.inner_stride);
      }
      through<Bytes, true>(x, e, block);
      for (int64_t row = 0; row < here; ++row) {
        const float* gate = gates + place[row] * x.number;
        const float* given = codes_gradient + (place[row] * x.number + e) * (x.inner + 1);
        float* of_row = of_code.data() + row * x.inner_stride;
        float of_gate = given[x.inner];
        for (int64_t j = 0; j < x.inner; ++j) {
          of_gate += given[j] * block.code[row * x.inner_stride + j];
          of_row[j] = gate[e] * given[j];
        }
        const float* of_gates = gates_gradient + place[row] * x.number;
        float* of_logits = of_scores.data() + row * x.number_stride;
        float mean = 0;
        for (int64_t i = 0; i < x.number; ++i) {
          of_logits[i] = of_gates[i] + (i == e ? of_gate : 0.0f);
          mean += gate[i] * of_logits[i];
        }
        for (int64_t i = 0; i < x.number; ++i) of_logits[i] = gate[i] * (of_logits[i] - mean);
      }
      add_outer<Bytes>(of_code.data(), x.inner_stride, block.hidden.data(), x.rank, x.inner, x.rank,
                       to.up_in + e * x.inner * x.rank);
      multiply<Bytes, false>(of_code.data(), x.inner_stride, x.up_in + e * x.inner * x.rank, x.inner, x.rank,
                             of_hidden.data(), x.rank);
      float* of_bias = to.bias + e * x.rank;
      for (int64_t row = 0; row < kRows; ++row)
        for (int64_t i = 0; i < x.rank; i += S::kWidth) {
          float* here_of = of_hidden.data() + row * x.rank + i;
          S::store(here_of, S::load(here_of) * S::load(block.slope.data() + row * x.rank + i));
          S::store(of_bias + i, S::load(of_bias + i) + S::load(here_of));
        }
      add_outer<Bytes>(block.inner.data(), x.inner_stride, of_hidden.data(), x.rank, x.inner, x.rank,
                       to.down_out + e * x.inner * x.rank);
      multiply<Bytes, false>(of_hidden.data(), x.rank, x.down_out_across + e * x.rank * x.inner_stride, x.rank,
                             x.inner_stride, of_inner.data(), x.inner_stride);
      add_outer<Bytes>(of_inner.data(), x.inner_stride, block.tokens.data(), x.width, x.inner, x.width,
                       to.down_in + e * x.inner * x.width);
      add_outer<Bytes>(of_scores.data(), x.number_stride, block.tokens.data(), x.width, x.number, x.width, to.router);
    }
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
