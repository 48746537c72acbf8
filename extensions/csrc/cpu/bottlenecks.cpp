#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "normal.h"
#include "simd.h"

namespace pax::cpu {
namespace {

template <int Bytes>
PAX_INLINE float sum_of(const float* values, int64_t size) {
  using S = Simd<Bytes, float>;
  constexpr int64_t kSums = kLanes / S::kWidth;
  typename S::Vector sums[kSums] = {};
  for (int64_t i = 0; i < size; i += kLanes)
    for (int64_t s = 0; s < kSums; ++s) sums[s] += S::load(values + i + s * S::kWidth);
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  return S::sum(sums[0]);
}

// row = (token - mean) / deviation; returns 1 / deviation.
template <int Bytes>
PAX_INLINE float normalize(const float* token, int64_t width, float eps, float* row) {
  using S = Simd<Bytes, float>;
  const float mean = sum_of<Bytes>(token, width) / static_cast<float>(width);
  for (int64_t i = 0; i < width; i += S::kWidth) S::store(row + i, S::load(token + i) - mean);
  const float inverse = 1.0f / std::sqrt(dot<Bytes>(row, row, width) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += S::kWidth) S::store(row + i, S::load(row + i) * inverse);
  return inverse;
}

// What kRows sub-tokens of one expert are on their way through it; rows without a sub-token are zero.
struct Block {
  explicit Block(const Bottlenecks& b)
      : normed(zeros(kRows * b.width)),
        hidden(zeros(kRows * b.hidden_stride)),
        active(zeros(kRows * b.up_stride)),
        weighted(zeros(kRows * b.up_stride)),
        slope(zeros(kRows * b.up_stride)) {}
  Buffer normed;         // (kRows, width), what the expert's first layer reads
  Buffer hidden;         // (kRows, hidden_stride), of its first layer
  Buffer active;         // (kRows, up_stride), behind activation and dropout, then 1, then zeros
  Buffer weighted;       // the same times factor and scale: what the last layer reads
  Buffer slope;          // (kRows, up_stride), the derivative of `active`
  float inverse[kRows];  // of the deviation of a sub-token
  float factor[kRows];   // the gate, or 1
  float scale[kRows];    // of the sub-token by itself, or 1
};

// Dropout: 32 bits for each value of a sub-token, from its place in the batch and a seed, with the finalizer of
// https://github.com/skeeto/hash-prospector ("lowbias32", public domain).
template <typename T>
PAX_INLINE T scrambled(T x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <int Bytes>
PAX_INLINE void drop(const Bottlenecks& b, int64_t place, float* active, float* slope) {
  using S = Simd<Bytes, float>;
  using Bits = typename S::Bits;
  const auto seed = static_cast<std::uint64_t>(b.seed), row = static_cast<std::uint64_t>(place);
  const std::uint32_t own = scrambled(static_cast<std::uint32_t>(row) ^ static_cast<std::uint32_t>(seed)) ^
                            scrambled(static_cast<std::uint32_t>(row >> 32) + static_cast<std::uint32_t>(seed >> 32));
  const auto bound = static_cast<int32_t>(static_cast<double>(b.dropout) * 16777216.0);  // of 24 bits
  const float kept = 1.0f / (1.0f - b.dropout);
  Bits lanes;
  for (int64_t lane = 0; lane < S::kWidth; ++lane) lanes[lane] = static_cast<std::uint32_t>(lane);
  for (int64_t j = 0; j < b.rank; j += S::kWidth) {
    const Bits bits = scrambled(Bits(lanes + (own + static_cast<std::uint32_t>(j)))) >> 8;
    typename S::Mask drawn;
    std::memcpy(&drawn, &bits, sizeof drawn);
    const auto factor = drawn >= bound ? S::every(kept) : typename S::Vector{};
    S::store(active + j, S::load(active + j) * factor);
    if (slope != nullptr) S::store(slope + j, S::load(slope + j) * factor);
  }
}

// What is not a number stays so.
template <typename T>
PAX_INLINE T relu(T x) {
  return x > 0 ? x : (x == x ? T{} : x);
}

template <int Bytes, bool Slopes>
PAX_INLINE void activate(const Bottlenecks& b, const float* hidden, float* active, float* slope) {
  using S = Simd<Bytes, float>;
  for (int64_t j = 0; j < b.rank; j += S::kWidth) {
    const auto x = S::load(hidden + j);
    if (b.gelu) {
      typename S::Vector distribution, density;
      normal<Bytes>(x, distribution, density);
      S::store(active + j, x * distribution);
      if constexpr (Slopes) S::store(slope + j, distribution + x * density);
    } else {
      S::store(active + j, relu(x));
      if constexpr (Slopes) S::store(slope + j, x > 0 ? S::every(1.0f) : typename S::Vector{});
    }
  }
}

template <int Bytes>
PAX_INLINE void enter(const Bottlenecks& b, const float* token, int64_t row, Block& block) {
  float* normed = block.normed.data() + row * b.width;
  if (b.eps >= 0) {
    block.inverse[row] = normalize<Bytes>(token, b.width, b.eps, normed);
  } else {
    std::copy(token, token + b.width, normed);
    block.inverse[row] = 1.0f;
  }
}

// Everything behind the first layer of row `row`, up to what the last layer reads; `place` is that of the sub-token in
// the batch.
template <int Bytes, bool Slopes>
PAX_INLINE void between(const Bottlenecks& b, float gate, int64_t place, int64_t row, Block& block) {
  using S = Simd<Bytes, float>;
  const float* hidden = block.hidden.data() + row * b.hidden_stride;
  float *active = block.active.data() + row * b.up_stride, *weighted = block.weighted.data() + row * b.up_stride,
        *slope = block.slope.data() + row * b.up_stride;
  block.factor[row] = b.normalized && gate == gate ? 1.0f : gate;  // what is not a number stays so
  block.scale[row] = b.hidden > b.rank ? relu(hidden[b.rank]) : 1.0f;
  activate<Bytes, Slopes>(b, hidden, active, slope);
  if (b.dropout > 0) drop<Bytes>(b, place, active, Slopes ? slope : nullptr);
  active[b.rank] = 1.0f;
  std::fill(active + b.rank + 1, active + b.up_stride, 0.0f);
  const float weight = block.factor[row] * block.scale[row];
  for (int64_t j = 0; j < b.up_stride; j += S::kWidth) S::store(weighted + j, weight * S::load(active + j));
}

template <int Bytes>
PAX_INLINE void route(const Bottlenecks& b, const float* tokens, int64_t rows, float* gates, int64_t* chosen) {
  Buffer some = zeros(kRows * b.width), scores = zeros(kRows * b.number_stride);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t here = std::min(kRows, rows - first);
    const float* data = tokens + first * b.width;
    if (here < kRows) {
      std::copy(data, data + here * b.width, some.begin());
      data = some.data();
    }
    multiply<Bytes, false>(data, b.width, b.router_across, b.width, b.number_stride, scores.data(), b.number_stride);
    for (int64_t row = 0; row < here; ++row)
      chosen[first + row] = softmax<Bytes>(scores.data() + row * b.number_stride, b.number, b.number_stride,
                                           gates + (first + row) * b.number);
  }
}

template <int Bytes>
PAX_INLINE void forward(const Bottlenecks& b, const float* tokens, int64_t place_of_first, int64_t rows, float* gates,
                        int64_t* chosen, float* hidden, float* out) {
  route<Bytes>(b, tokens, rows, gates, chosen);
  const Groups groups(chosen, rows, b.number);
  Block block(b);
  Buffer result = zeros(kRows * b.width);
  for (int64_t e = 0; e < b.number; ++e) {
    const float* bias = b.bias + e * b.hidden_stride;
    for (int64_t first = groups.begin[e]; first < groups.begin[e + 1]; first += kRows) {
      const int64_t here = std::min(kRows, groups.begin[e + 1] - first);
      const int64_t* place = groups.order.data() + first;
      for (int64_t row = 0; row < here; ++row) enter<Bytes>(b, tokens + place[row] * b.width, row, block);
      for (int64_t row = 0; row < kRows; ++row)
        std::copy(bias, bias + b.hidden_stride, block.hidden.begin() + row * b.hidden_stride);
      multiply<Bytes, true>(block.normed.data(), b.width, b.down_across + e * b.width * b.hidden_stride, b.width,
                            b.hidden_stride, block.hidden.data(), b.hidden_stride);
      for (int64_t row = 0; row < here; ++row) {
        const float* from = block.hidden.data() + row * b.hidden_stride;
        std::copy(from, from + b.hidden, hidden + place[row] * b.hidden);
        between<Bytes, false>(b, gates[place[row] * b.number + e], place_of_first + place[row], row, block);
      }
      multiply<Bytes, false>(block.weighted.data(), b.up_stride, b.up + e * (b.rank + 1) * b.width, b.rank + 1, b.width,
                             result.data(), b.width);
      for (int64_t row = 0; row < here; ++row)
        std::copy(result.begin() + row * b.width, result.begin() + (row + 1) * b.width, out + place[row] * b.width);
    }
  }
}

// Gradients of an expert's first layer and of the router's scores, from that of what its last layer reads.
template <int Bytes>
PAX_INLINE void back_between(const Bottlenecks& b, const Block& block, int64_t row, int64_t expert, const float* gate,
                             const float* of_gates, const float* of_active, float* of_hidden, float* of_scores) {
  using S = Simd<Bytes, float>;
  const float* slope = block.slope.data() + row * b.up_stride;
  const float factor = block.factor[row], scale = block.scale[row];
  // The expert's output before factor and scale, times its gradient.
  const float whole = dot<Bytes>(block.active.data() + row * b.up_stride, of_active, b.up_stride);
  for (int64_t j = 0; j < b.rank; j += S::kWidth)
    S::store(of_hidden + j, factor * scale * S::load(of_active + j) * S::load(slope + j));
  std::fill(of_hidden + b.rank, of_hidden + b.hidden_stride, 0.0f);
  if (b.hidden > b.rank && block.hidden[row * b.hidden_stride + b.rank] > 0) of_hidden[b.rank] = factor * whole;
  float mean = 0;
  for (int64_t e = 0; e < b.number; ++e) {
    of_scores[e] = of_gates[e];
    if (e == expert) of_scores[e] += scale * whole / (b.normalized ? gate[e] : 1.0f);
    mean += gate[e] * of_scores[e];
  }
  for (int64_t e = 0; e < b.number; ++e) of_scores[e] = gate[e] * (of_scores[e] - mean);
}

template <int Bytes>
PAX_INLINE void back_normalize(const float* normed, float inverse, int64_t width, float* of_token) {
  using S = Simd<Bytes, float>;
  const float mean = sum_of<Bytes>(of_token, width) / static_cast<float>(width);
  const float along = dot<Bytes>(of_token, normed, width) / static_cast<float>(width);
  for (int64_t i = 0; i < width; i += S::kWidth)
    S::store(of_token + i, inverse * (S::load(of_token + i) - mean - along * S::load(normed + i)));
}

template <int Bytes>
PAX_INLINE void backward(const Bottlenecks& b, const float* tokens, int64_t place_of_first, int64_t rows,
                         const float* gates, const int64_t* chosen, const float* hidden, const float* gradient,
                         const float* gates_gradient, const BottleneckGradients& to) {
  const Groups groups(chosen, rows, b.number);
  Block block(b);
  Buffer raw = zeros(kRows * b.width), pull = zeros(kRows * b.width), of_active = zeros(kRows * b.up_stride),
         of_hidden = zeros(kRows * b.hidden_stride), of_scores = zeros(kRows * b.number_stride),
         of_tokens = zeros(kRows * b.width);
  for (int64_t e = 0; e < b.number; ++e) {
    for (int64_t first = groups.begin[e]; first < groups.begin[e + 1]; first += kRows) {
      const int64_t here = std::min(kRows, groups.begin[e + 1] - first);
      const int64_t* place = groups.order.data() + first;
      if (here < kRows)
        for (Buffer* rest : {&raw, &pull, &block.normed, &block.weighted, &of_hidden, &of_scores}) {
          const auto each = static_cast<int64_t>(rest->size()) / kRows;
          std::fill(rest->begin() + here * each, rest->end(), 0.0f);
        }
      for (int64_t row = 0; row < here; ++row) {
        const float *token = tokens + place[row] * b.width, *of_output = gradient + place[row] * b.width;
        std::copy(token, token + b.width, raw.begin() + row * b.width);
        std::copy(of_output, of_output + b.width, pull.begin() + row * b.width);
        enter<Bytes>(b, token, row, block);
        std::copy(hidden + place[row] * b.hidden, hidden + (place[row] + 1) * b.hidden,
                  block.hidden.begin() + row * b.hidden_stride);
        between<Bytes, true>(b, gates[place[row] * b.number + e], place_of_first + place[row], row, block);
      }
      multiply<Bytes, false>(pull.data(), b.width, b.up_across + e * b.width * b.up_stride, b.width, b.up_stride,
                             of_active.data(), b.up_stride);
      add_outer<Bytes>(block.weighted.data(), b.up_stride, pull.data(), b.width, b.rank + 1, b.width,
                       to.up + e * (b.rank + 1) * b.width);
      for (int64_t row = 0; row < here; ++row) {
        float* of_row = of_hidden.data() + row * b.hidden_stride;
        back_between<Bytes>(b, block, row, e, gates + place[row] * b.number, gates_gradient + place[row] * b.number,
                            of_active.data() + row * b.up_stride, of_row, of_scores.data() + row * b.number_stride);
        for (int64_t j = 0; j < b.hidden; ++j) to.bias[e * b.hidden + j] += of_row[j];
      }
      add_outer<Bytes>(of_hidden.data(), b.hidden_stride, block.normed.data(), b.width, b.hidden, b.width,
                       to.down + e * b.hidden * b.width);
      add_outer<Bytes>(of_scores.data(), b.number_stride, raw.data(), b.width, b.number, b.width, to.router);
      if (to.tokens == nullptr) continue;
      multiply<Bytes, false>(of_hidden.data(), b.hidden_stride, b.down + e * b.hidden * b.width, b.hidden, b.width,
                             of_tokens.data(), b.width);
      if (b.eps >= 0)
        for (int64_t row = 0; row < here; ++row)
          back_normalize<Bytes>(block.normed.data() + row * b.width, block.inverse[row], b.width,
                                of_tokens.data() + row * b.width);
      multiply<Bytes, true>(of_scores.data(), b.number_stride, b.router, b.number, b.width, of_tokens.data(), b.width);
      for (int64_t row = 0; row < here; ++row)
        std::copy(of_tokens.begin() + row * b.width, of_tokens.begin() + (row + 1) * b.width,
                  to.tokens + place[row] * b.width);
    }
  }
}

PAX_DISPATCH(void, forward,
             (const Bottlenecks& b, const float* tokens, int64_t place_of_first, int64_t rows, float* gates,
              int64_t* chosen, float* hidden, float* out),
             (b, tokens, place_of_first, rows, gates, chosen, hidden, out), forward)
PAX_DISPATCH(void, backward,
             (const Bottlenecks& b, const float* tokens, int64_t place_of_first, int64_t rows, const float* gates,
              const int64_t* chosen, const float* hidden, const float* gradient, const float* gates_gradient,
              const BottleneckGradients& to),
             (b, tokens, place_of_first, rows, gates, chosen, hidden, gradient, gates_gradient, to), backward)

}  // namespace

void bottlenecks(const Bottlenecks& experts, const float* tokens, int64_t place_of_first, int64_t rows, float* gates,
                 int64_t* chosen, float* hidden, float* out) {
  forward(experts, tokens, place_of_first, rows, gates, chosen, hidden, out);
}

void bottlenecks_backward(const Bottlenecks& experts, const float* tokens, int64_t place_of_first, int64_t rows,
                          const float* gates, const int64_t* chosen, const float* hidden, const float* gradient,
                          const float* gates_gradient, const BottleneckGradients& gradients) {
  backward(experts, tokens, place_of_first, rows, gates, chosen, hidden, gradient, gates_gradient, gradients);
}

}  // namespace pax::cpu
