// Registers the CPU kernels of mixtures of experts: of the low-rank one (pointadapterx/peft/parts/low_rank_mixture.py)
// and of bottlenecks (pointadapterx/peft/parts/fused_bottlenecks.py). Their other form is torch's, not an op.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace {

using at::Tensor;

// ---- The low-rank mixture ----

// As many parts whatever the number of threads, so that sums over rows do not depend on it. Each has gradients of its
// own, of so many values, which take 64 MiB at most beyond those of one part.
int64_t parts_of(int64_t rows, int64_t values) {
  return std::max<int64_t>(1, std::min({int64_t{16}, rows / 256 + 1, (int64_t{1} << 24) / values}));
}

int64_t filled(int64_t size) { return (size + pax::cpu::kLanes - 1) / pax::cpu::kLanes * pax::cpu::kLanes; }

// Rows of a float32 tensor (…, size) with size >= 1, filled up with zeros.
struct Padded {
  explicit Padded(const Tensor& matrix) : size(matrix.size(-1)), stride(filled(size)) {
    const Tensor rows = matrix.contiguous();
    const float* from = rows.const_data_ptr<float>();
    values.resize(static_cast<std::size_t>(rows.numel() / size * stride));
    for (int64_t row = 0; row < rows.numel() / size; ++row)
      std::copy(from + row * size, from + (row + 1) * size, values.begin() + row * stride);
  }
  int64_t size, stride;
  std::vector<float> values;
};

// `router` (E, width), returned if it fits down_in (E, inner, width), down_out and up_in (E, inner, rank) and bias
// (E, rank).
const Tensor& checked_experts(const Tensor& router, const Tensor& down_in, const Tensor& down_out, const Tensor& bias,
                              const Tensor& up_in) {
  TORCH_CHECK(router.dim() == 2 && down_in.dim() == 3 && down_out.dim() == 3 && bias.dim() == 2 && up_in.dim() == 3,
              "router and bias of experts must have 2 axes, down_in, down_out and up_in 3; got ", router.sizes(), ", ",
              bias.sizes(), ", ", down_in.sizes(), ", ", down_out.sizes(), ", ", up_in.sizes());
  for (const Tensor* part : {&router, &down_in, &down_out, &bias, &up_in})
    TORCH_CHECK(part->scalar_type() == at::kFloat && part->layout() == at::kStrided,
                "experts must be dense float32 tensors, got ", part->scalar_type(), ", ", part->layout());
  const int64_t number = router.size(0), inner = down_in.size(1), width = router.size(1), rank = bias.size(1);
  TORCH_CHECK(number > 0 && inner > 0 && width > 0 && rank > 0,
              "there must be experts, of a width, a rank and an inner rank of 1 or more; got ", number, " of width ",
              width, ", rank ", rank, ", inner rank ", inner);
  TORCH_CHECK(down_in.sizes() == at::IntArrayRef({number, inner, width}) &&
                  down_out.sizes() == at::IntArrayRef({number, inner, rank}) && bias.size(0) == number &&
                  up_in.sizes() == at::IntArrayRef({number, inner, rank}),
              "shapes of experts do not fit together: router ", router.sizes(), ", down_in ", down_in.sizes(),
              ", down_out ", down_out.sizes(), ", bias ", bias.sizes(), ", up_in ", up_in.sizes());
  return router;
}

// Matrices (…, rows, columns) -> (…, columns or more, rows), filled up with zeros.
std::vector<float> across(const Tensor& matrices_, int64_t columns_wanted) {
  const Tensor matrices = matrices_.contiguous();
  const int64_t rows = matrices.size(-2), columns = matrices.size(-1), stride = filled(rows);
  const int64_t number = matrices.numel() / (rows * columns);
  std::vector<float> result(static_cast<std::size_t>(number * columns_wanted * stride));
  const float* from = matrices.const_data_ptr<float>();
  for (int64_t matrix = 0; matrix < number; ++matrix)
    for (int64_t row = 0; row < rows; ++row, from += columns)
      for (int64_t column = 0; column < columns; ++column)
        result[(matrix * columns_wanted + column) * stride + row] = from[column];
  return result;
}
std::vector<float> across(const Tensor& matrices) { return across(matrices, matrices.size(-1)); }

struct Bank {
  Bank(const Tensor& router_, const Tensor& down_in_, const Tensor& down_out_, const Tensor& bias_,
       const Tensor& up_in_)
      : width(checked_experts(router_, down_in_, down_out_, bias_, up_in_).size(1)),
        down_out(down_out_),
        bias(bias_),
        up_in(up_in_),
        router_across(across(router_)),
        down_in_across(across(down_in_)),
        down_out_across(across(down_out_, bias.stride)),
        up_in_across(across(up_in_, bias.stride)) {
    const int64_t number = router_.size(0), inner = down_in_.size(1);
    view = {number,
            filled(width),
            inner,
            bias.stride,
            filled(number),
            filled(inner),
            router_across.data(),
            down_in_across.data(),
            down_out.values.data(),
            down_out_across.data(),
            bias.values.data(),
            up_in.values.data(),
            up_in_across.data()};
  }
  int64_t width;
  Padded down_out, bias, up_in;
  std::vector<float> router_across, down_in_across, down_out_across, up_in_across;
  pax::cpu::Experts view;
};

void check_tokens(const Tensor& tokens, const Bank& bank) {
  TORCH_CHECK(tokens.layout() == at::kStrided && tokens.dim() == 2 && tokens.size(1) % bank.width == 0 &&
                  (tokens.stride(1) == 1 || tokens.size(1) == 1),
              "tokens must be rows of sub-tokens, (B, n * ", bank.width, "), got ", tokens.sizes());
}

// Calls function(data, first, number) for ranges of the sub-tokens [begin, end), each of one sample: `data` is the
// first of them and `first` its position among all.
template <typename T, typename Function>
void for_each_sample(const Tensor& tokens, int64_t width, int64_t begin, int64_t end, const Function& function) {
  const int64_t each = tokens.size(1) / width;
  const T* data = static_cast<const T*>(tokens.const_data_ptr());
  while (begin < end) {
    const int64_t b = begin / each, number = std::min(end, (b + 1) * each) - begin;
    function(data + b * tokens.stride(0) + (begin - b * each) * width, begin, number);
    begin += number;
  }
}

template <typename Function>
void by_type(const Tensor& tokens, const Function& function) {
  if (tokens.scalar_type() == at::kFloat)
    function(float{});
  else if (tokens.scalar_type() == at::kBFloat16)
    function(pax::cpu::BFloat16{});
  else
    TORCH_CHECK(false, "tokens must be float32 or bfloat16, got ", tokens.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> thin_experts(const Tensor& tokens, const Tensor& router,
                                                        const Tensor& down_in, const Tensor& down_out,
                                                        const Tensor& bias, const Tensor& up_in) {
  const Bank bank(router, down_in, down_out, bias, up_in);
  check_tokens(tokens, bank);
  const int64_t width = router.size(1), number = router.size(0), inner = down_in.size(1);
  const int64_t rows = tokens.numel() / width;
  const auto options = router.options();
  Tensor codes = at::zeros({rows, number, inner + 1}, options), gates = at::empty({rows, number}, options),
         chosen = at::empty({rows}, options.dtype(at::kLong)), squeezed = at::empty({rows, inner}, options);
  float *code = codes.mutable_data_ptr<float>(), *gate = gates.mutable_data_ptr<float>(),
        *in = squeezed.mutable_data_ptr<float>();
  int64_t* best = chosen.mutable_data_ptr<int64_t>();
  by_type(tokens, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
      for_each_sample<T>(tokens, width, begin, end, [&](const T* data, int64_t first, int64_t some) {
        pax::cpu::thin_experts(bank.view, data, some, width, gate + first * number, best + first, in + first * inner,
                               code + first * number * (inner + 1));
      });
    });
  });
  return {codes, gates, chosen, squeezed};
}

// The sum over parts (parts, rows, stride) -> (rows, size), in the shape of `like`.
Tensor total(const Tensor& parts, const Tensor& like) {
  return parts.sum(0).narrow(1, 0, like.size(-1)).reshape(like.sizes());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> thin_experts_backward(
    const Tensor& codes_gradient_, const Tensor& gates_gradient_, const Tensor& gates, const Tensor& chosen,
    const Tensor& squeezed, const Tensor& tokens, const Tensor& router, const Tensor& down_in, const Tensor& down_out,
    const Tensor& bias, const Tensor& up_in) {
  const Bank bank(router, down_in, down_out, bias, up_in);
  check_tokens(tokens, bank);
  for (const Tensor* part : {&codes_gradient_, &gates_gradient_, &gates, &squeezed})
    TORCH_CHECK(part->scalar_type() == at::kFloat, "gradients, gates and squeezed must be float32, got ",
                part->scalar_type());
  TORCH_CHECK(chosen.scalar_type() == at::kLong, "chosen must be int64, got ", chosen.scalar_type());
  const Tensor codes_gradient = codes_gradient_.contiguous(), gates_gradient = gates_gradient_.contiguous();
  const int64_t width = router.size(1), number = router.size(0), inner = down_in.size(1);
  const int64_t rows = tokens.numel() / width;
  TORCH_CHECK(codes_gradient.numel() == rows * number * (inner + 1) && gates_gradient.numel() == rows * number &&
                  gates.numel() == rows * number && chosen.numel() == rows && squeezed.numel() == rows * inner,
              "gradients do not fit ", rows, " sub-tokens and ", number, " experts");
  TORCH_CHECK(gates.is_contiguous() && chosen.is_contiguous() && squeezed.is_contiguous(),
              "what thin_experts returned must be handed back as it was");
  const int64_t* best = chosen.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(best, best + rows, [&](int64_t e) { return e >= 0 && e < number; }),
              "chosen experts must be among the ", number);
  const int64_t wide = bank.view.width, rank = bank.view.rank;
  const int64_t parts = parts_of(rows, number * ((inner + 1) * wide + (2 * inner + 1) * rank));
  const int64_t each = (rows + parts - 1) / parts;
  const auto zeros = [&](int64_t matrices, int64_t stride) {
    return at::zeros({parts, matrices, stride}, router.options());
  };
  Tensor d_router = zeros(number, wide), d_down_in = zeros(number * inner, wide),
         d_down_out = zeros(number * inner, rank), d_bias = zeros(number, rank), d_up_in = zeros(number * inner, rank);
  const auto part_of = [](Tensor& all, int64_t part) {
    return all.mutable_data_ptr<float>() + part * all.stride(0);
  };
  by_type(tokens, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const pax::cpu::ExpertGradients gradients{part_of(d_router, part), part_of(d_down_in, part),
                                                  part_of(d_down_out, part), part_of(d_bias, part),
                                                  part_of(d_up_in, part)};
        for_each_sample<T>(
            tokens, width, part * each, std::min(rows, (part + 1) * each),
            [&](const T* data, int64_t first, int64_t some) {
              pax::cpu::thin_experts_backward(
                  bank.view, data, some, width, gates.const_data_ptr<float>() + first * number,
                  best + first, squeezed.const_data_ptr<float>() + first * inner,
                  codes_gradient.const_data_ptr<float>() + first * number * (inner + 1),
                  gates_gradient.const_data_ptr<float>() + first * number, gradients);
            });
      }
    });
  });
  return {total(d_router, router), total(d_down_in, down_in), total(d_down_out, down_out), total(d_bias, bias),
          total(d_up_in, up_in)};
}

// ---- The mixture of bottlenecks ----

// The weights of a call, as the kernels read them.
struct BottleneckBank {
  BottleneckBank(const Tensor& router_, const Tensor& down_, const Tensor& bias_, const Tensor& up_, bool gelu,
                 bool normalized, double eps, double dropout, int64_t seed)
      : router(router_.contiguous()), down(down_.contiguous()), up(up_.contiguous()) {
    TORCH_CHECK(router.dim() == 2 && down.dim() == 3 && bias_.dim() == 2 && up.dim() == 3,
                "router and bias of experts must have 2 axes, down and up 3; got ", router.sizes(), ", ", bias_.sizes(),
                ", ", down.sizes(), ", ", up.sizes());
    for (const Tensor* part : {&router_, &down_, &bias_, &up_})
      TORCH_CHECK(part->scalar_type() == at::kFloat && part->layout() == at::kStrided,
                  "experts must be dense float32 tensors, got ", part->scalar_type(), ", ", part->layout());
    TORCH_CHECK(dropout >= 0 && dropout < 1, "dropout=", dropout, " must be in [0, 1)");
    TORCH_CHECK(eps >= 0 || eps == -1, "eps=", eps, " must be at least 0, or -1 without a norm");
    const int64_t number = router.size(0), width = router.size(1), hidden = down.size(1), rank = up.size(1) - 1;
    TORCH_CHECK(number > 0 && rank > 0 && width > 0 && width % pax::cpu::kLanes == 0,
                "there must be experts of a rank of 1 or more and a width that ", pax::cpu::kLanes, " divides; got ",
                number, " of rank ", rank, " and width ", width);
    TORCH_CHECK((hidden == rank || hidden == rank + 1) && down.sizes() == at::IntArrayRef({number, hidden, width}) &&
                    bias_.sizes() == at::IntArrayRef({number, hidden}) &&
                    up.sizes() == at::IntArrayRef({number, rank + 1, width}),
                "shapes of experts do not fit together: router ", router.sizes(), ", down ", down.sizes(), ", bias ",
                bias_.sizes(), ", up ", up.sizes());
    bias = Padded(bias_).values;
    router_across = across(router);
    down_across = across(down);
    up_across = across(up);
    view = {number,
            width,
            rank,
            hidden,
            filled(number),
            filled(hidden),
            filled(rank + 1),
            gelu,
            normalized,
            static_cast<float>(eps),
            static_cast<float>(dropout),
            seed,
            router.const_data_ptr<float>(),
            router_across.data(),
            down.const_data_ptr<float>(),
            down_across.data(),
            bias.data(),
            up.const_data_ptr<float>(),
            up_across.data()};
  }
  Tensor router, down, up;
  std::vector<float> bias, router_across, down_across, up_across;
  pax::cpu::Bottlenecks view;
};

// Contiguous float32 rows (rows, columns), where there are any.
const float* rows_of(const Tensor& tensor, int64_t rows, int64_t columns, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.dim() == 2 &&
                  tensor.size(0) == rows && tensor.size(1) == columns,
              name, " must be contiguous float32 of shape [", rows, ", ", columns, "], got ", tensor.scalar_type(), " ",
              tensor.sizes());
  return tensor.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bottlenecks(const Tensor& tokens, const Tensor& router, const Tensor& down,
                                                       const Tensor& bias, const Tensor& up, bool gelu, bool normalized,
                                                       double eps, double dropout, int64_t seed) {
  const BottleneckBank bank(router, down, bias, up, gelu, normalized, eps, dropout, seed);
  const pax::cpu::Bottlenecks& b = bank.view;
  TORCH_CHECK(tokens.dim() == 2, "tokens must have 2 axes, got ", tokens.sizes());
  const int64_t rows = tokens.size(0);
  const float* data = rows_of(tokens, rows, b.width, "tokens");
  Tensor gates = at::empty({rows, b.number}, tokens.options()),
         chosen = at::empty({rows}, tokens.options().dtype(at::kLong)),
         hidden = at::empty({rows, b.hidden}, tokens.options()), out = at::empty({rows, b.width}, tokens.options());
  float *gate = gates.mutable_data_ptr<float>(), *inside = hidden.mutable_data_ptr<float>(),
        *result = out.mutable_data_ptr<float>();
  int64_t* best = chosen.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
    pax::cpu::bottlenecks(b, data + begin * b.width, begin, end - begin, gate + begin * b.number, best + begin,
                          inside + begin * b.hidden, result + begin * b.width);
  });
  return {out, gates, chosen, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bottlenecks_backward(
    const Tensor& gradient, const Tensor& gates_gradient, const Tensor& gates, const Tensor& chosen,
    const Tensor& hidden, const Tensor& tokens, const Tensor& router, const Tensor& down, const Tensor& bias,
    const Tensor& up, bool gelu, bool normalized, double eps, double dropout, int64_t seed, bool of_tokens) {
  const BottleneckBank bank(router, down, bias, up, gelu, normalized, eps, dropout, seed);
  const pax::cpu::Bottlenecks& b = bank.view;
  TORCH_CHECK(tokens.dim() == 2, "tokens must have 2 axes, got ", tokens.sizes());
  const int64_t rows = tokens.size(0);
  const float* data = rows_of(tokens, rows, b.width, "tokens");
  const float* pull = rows_of(gradient, rows, b.width, "gradient");
  const float* gate_pull = rows_of(gates_gradient, rows, b.number, "gates_gradient");
  const float* gate = rows_of(gates, rows, b.number, "gates");
  const float* inside = rows_of(hidden, rows, b.hidden, "hidden");
  TORCH_CHECK(chosen.scalar_type() == at::kLong && chosen.is_contiguous() && chosen.numel() == rows,
              "chosen must be ", rows, " of int64, got ", chosen.scalar_type(), " ", chosen.sizes());
  const int64_t* best = chosen.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(best, best + rows, [&](int64_t e) { return e >= 0 && e < b.number; }),
              "chosen experts must be among the ", b.number);
  const int64_t values = router.numel() + down.numel() + bias.numel() + up.numel();
  const int64_t parts = parts_of(rows, values), each = (rows + parts - 1) / parts;
  const auto zeros = [&](at::IntArrayRef sizes) {
    std::vector<int64_t> all(sizes.begin(), sizes.end());
    all.insert(all.begin(), parts);
    return at::zeros(all, router.options());
  };
  Tensor d_router = zeros(router.sizes()), d_down = zeros(down.sizes()), d_bias = zeros(bias.sizes()),
         d_up = zeros(up.sizes()), d_tokens = at::empty({of_tokens ? rows : 0, b.width}, tokens.options());
  float* token_pull = of_tokens ? d_tokens.mutable_data_ptr<float>() : nullptr;
  const auto part_of = [](Tensor& all, int64_t part) {
    return all.mutable_data_ptr<float>() + part * all.stride(0);
  };
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = std::min(rows, part * each), some = std::min(rows, first + each) - first;
      const pax::cpu::BottleneckGradients to{part_of(d_router, part), part_of(d_down, part), part_of(d_bias, part),
                                             part_of(d_up, part),
                                             of_tokens ? token_pull + first * b.width : nullptr};
      pax::cpu::bottlenecks_backward(b, data + first * b.width, first, some, gate + first * b.number, best + first,
                                     inside + first * b.hidden, pull + first * b.width, gate_pull + first * b.number,
                                     to);
    }
  });
  return {d_tokens, d_router.sum(0), d_down.sum(0), d_bias.sum(0), d_up.sum(0)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pointadapterx, m) {
  m.def(
      "thin_experts(Tensor tokens, Tensor router, Tensor down_in, Tensor down_out, Tensor bias, Tensor up_in) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "thin_experts_backward(Tensor codes_gradient, Tensor gates_gradient, Tensor gates, Tensor chosen, Tensor "
      "squeezed, Tensor tokens, Tensor router, Tensor down_in, Tensor down_out, Tensor bias, Tensor up_in) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "bottlenecks(Tensor tokens, Tensor router, Tensor down, Tensor bias, Tensor up, bool gelu, bool normalized, "
      "float eps, float dropout, int seed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "bottlenecks_backward(Tensor gradient, Tensor gates_gradient, Tensor gates, Tensor chosen, Tensor hidden, Tensor "
      "tokens, Tensor router, Tensor down, Tensor bias, Tensor up, bool gelu, bool normalized, float eps, float "
      "dropout, int seed, bool of_tokens) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(pointadapterx, CPU, m) {
  m.impl("thin_experts", thin_experts);
  m.impl("thin_experts_backward", thin_experts_backward);
  m.impl("bottlenecks", bottlenecks);
  m.impl("bottlenecks_backward", bottlenecks_backward);
}
