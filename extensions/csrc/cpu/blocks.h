// Sub-tokens sorted by expert, and products of a few of them at a time.
//
// Sums have the same order whatever the vectors' length, so that all instruction sets give the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "normal.h"
#include "simd.h"

namespace pax::cpu {

// Sub-tokens of one expert are taken so many at a time: every value of a matrix that is read serves all of them.
constexpr int64_t kRows = 8;

// Rows of floats, zero at first.
using Buffer = std::vector<float>;
inline Buffer zeros(int64_t count) { return Buffer(static_cast<std::size_t>(count)); }

// out (kRows, columns) = or += a (kRows, inner) · b (inner, columns), columns of b and out a multiple of kLanes. A sum
// runs over `inner` in order.
template <int Bytes, int64_t Vectors, bool Add>
PAX_INLINE void multiply_columns(const float* a, int64_t a_stride, const float* b, int64_t inner, int64_t columns,
                                 float* out, int64_t out_stride) {
  using S = Simd<Bytes, float>;
  typename S::Vector sums[kRows][Vectors];
#pragma GCC unroll 8
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int64_t v = 0; v < Vectors; ++v)
      sums[row][v] = Add ? S::load(out + row * out_stride + v * S::kWidth) : typename S::Vector{};
  for (int64_t k = 0; k < inner; ++k) {
    typename S::Vector of_b[Vectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < Vectors; ++v) of_b[v] = S::load(b + k * columns + v * S::kWidth);
#pragma GCC unroll 8
    for (int64_t row = 0; row < kRows; ++row) {
      const float factor = a[row * a_stride + k];
#pragma GCC unroll 4
      for (int64_t v = 0; v < Vectors; ++v) sums[row][v] += factor * of_b[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int64_t v = 0; v < Vectors; ++v) S::store(out + row * out_stride + v * S::kWidth, sums[row][v]);
}

template <int Bytes, bool Add>
PAX_INLINE void multiply(const float* a, int64_t a_stride, const float* b, int64_t inner, int64_t columns, float* out,
                         int64_t out_stride) {
  constexpr int64_t kWidth = Simd<Bytes, float>::kWidth;
  constexpr int64_t kWide = Bytes == 64 ? 2 : 1;  // as many sums as there are registers for
  int64_t column = 0;
  for (; column + kWide * kWidth <= columns; column += kWide * kWidth)
    multiply_columns<Bytes, kWide, Add>(a, a_stride, b + column, inner, columns, out + column, out_stride);
  for (; column < columns; column += kWidth)
    multiply_columns<Bytes, 1, Add>(a, a_stride, b + column, inner, columns, out + column, out_stride);
}

// out (inner, columns) += aᵀ (inner, kRows) · b (kRows, columns), row by row.
template <int Bytes>
PAX_INLINE void add_outer(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner,
                          int64_t columns, float* out) {
  using S = Simd<Bytes, float>;
  for (int64_t column = 0; column < columns; column += S::kWidth) {
    typename S::Vector of_b[kRows];
#pragma GCC unroll 8
    for (int64_t row = 0; row < kRows; ++row) of_b[row] = S::load(b + row * b_stride + column);
    for (int64_t k = 0; k < inner; ++k) {
      auto sum = S::load(out + k * columns + column);
#pragma GCC unroll 8
      for (int64_t row = 0; row < kRows; ++row) sum += a[row * a_stride + k] * of_b[row];
      S::store(out + k * columns + column, sum);
    }
  }
}

// Scores (number) -> gates (number), their softmax, padded; returns the best, as torch chooses it.
template <int Bytes>
PAX_INLINE int64_t softmax(float* scores, int64_t number, int64_t padded, float* gates) {
  using S = Simd<Bytes, float>;
  int64_t best = 0;
  bool numbers = true;
  for (int64_t e = 0; e < number; ++e) {
    if (scores[e] > scores[best]) best = e;
    numbers = numbers && scores[e] == scores[e];
  }
  if (!numbers || !std::isfinite(scores[best])) {
    std::fill(gates, gates + number, std::numeric_limits<float>::quiet_NaN());
    return 0;
  }
  const float highest = scores[best];
  for (int64_t e = 0; e < padded; e += S::kWidth) {
    const auto below = S::most(highest - S::load(scores + e), S::every(0.0f));  // what fills the row up may be above
    S::store(scores + e, exp_of_minus<Bytes>(S::least(below, S::every(87.0f))));
  }
  float total = 0;
  for (int64_t e = 0; e < number; ++e) total += scores[e];
  for (int64_t e = 0; e < number; ++e) gates[e] = scores[e] / total;
  return best;
}

// The positions [0, rows) sorted by expert, those of one in their order, and where each expert's begin.
struct Groups {
  Groups(const int64_t* chosen, int64_t rows, int64_t number)
      : order(static_cast<std::size_t>(rows)), begin(static_cast<std::size_t>(number) + 1) {
    for (int64_t row = 0; row < rows; ++row) ++begin[chosen[row] + 1];
    for (int64_t e = 0; e < number; ++e) begin[e + 1] += begin[e];
    std::vector<int64_t> next(begin);
    for (int64_t row = 0; row < rows; ++row) order[next[chosen[row]]++] = row;
  }
  std::vector<int64_t> order, begin;
};

}  // namespace pax::cpu
