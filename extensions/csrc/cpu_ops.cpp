// Registers the CPU kernels of the point ops under the schemas of pointadapterx/ops/library.py, and that of the thin
// mixture (pointadapterx/peft/thin_mixture.py), whose other form is torch's, not an op.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "inputs.h"

namespace {

using at::Tensor;

// Work below this many values is not worth another thread.
constexpr int64_t kGrain = 32768;

// The kernels count points in lanes as wide as a coordinate.
void check_count(const Tensor& points) {
  TORCH_CHECK(points.size(1) < std::numeric_limits<int32_t>::max() - 64, "clouds have ", points.size(1),
              " points; the CPU kernels take fewer than 2^31 - 65");
}

// Threads for one of `batch` pieces of work that are done side by side.
int threads_of_one(int64_t batch) { return batch > 1 || at::in_parallel_region() ? 1 : at::get_num_threads(); }

// The values of lengths (B,), or nothing for clouds that are full.
class Lengths {
 public:
  Lengths() = default;
  Lengths(const Tensor& lengths, const Tensor& points, const char* name) : values_(lengths.contiguous()) {
    pax::check_lengths(lengths, points, name);
    data_ = values_.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < points.size(0); ++b)
      TORCH_CHECK(data_[b] >= 1 && data_[b] <= points.size(1), name, "[", b, "]=", data_[b], " must be in [1, N=",
                  points.size(1), "]");
  }
  int64_t of(int64_t b, int64_t full) const { return data_ == nullptr ? full : data_[b]; }

 private:
  Tensor values_;
  const int64_t* data_ = nullptr;
};

Tensor sample_each(const Tensor& points_, int64_t num_samples, int64_t start, bool skip_origin,
                   const Lengths& lengths) {
  pax::check_fps(points_, num_samples, start);
  check_count(points_);
  const Tensor points = points_.contiguous();
  const int64_t batch = points.size(0), count = points.size(1);
  for (int64_t b = 0; b < batch; ++b)
    TORCH_CHECK(start < lengths.of(b, count), "start=", start, " must be below lengths[", b, "]=", lengths.of(b, count));
  Tensor chosen = pax::index_tensor({batch, num_samples}, points);
  int64_t* out = chosen.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "farthest_point_sample", [&] {
    const scalar_t* data = points.const_data_ptr<scalar_t>();
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        pax::cpu::farthest_point_sample<scalar_t>(data + b * count * 3, lengths.of(b, count), num_samples, start,
                                                  skip_origin, threads_of_one(batch), out + b * num_samples);
    });
  });
  return chosen;
}

Tensor farthest_point_sample(const Tensor& points, int64_t num_samples, int64_t start, bool skip_origin) {
  return sample_each(points, num_samples, start, skip_origin, {});
}

Tensor ragged_farthest_point_sample(const Tensor& points, const Tensor& lengths, int64_t num_samples, int64_t start,
                                    bool skip_origin) {
  pax::check_clouds(points, "points");
  return sample_each(points, num_samples, start, skip_origin, {lengths, points, "lengths"});
}

// The real points and queries of clouds (B, N, D) and queries (B, M, D).
struct Sizes {
  Lengths points, queries;
};

Sizes sizes_of(const Tensor& query, const Tensor& points, const Tensor& query_lengths, const Tensor& lengths) {
  pax::check_search(query, points);
  return {{lengths, points, "lengths"}, {query_lengths, query, "query_lengths"}};
}

// Makes each cloud ready, then calls search(neighbours, query, first, number, count) for ranges of the flattened
// queries, each of one cloud of `count` points: `query` is the first of them and `first` its position among all.
// Queries behind the length of their cloud are left out.
template <typename T, typename Search>
void for_each_query(const Tensor& query, const Tensor& points, const Sizes& sizes, pax::cpu::Task task,
                    const Search& search) {
  check_count(points);
  const int64_t batch = points.size(0), count = points.size(1), dims = points.size(2), queries = query.size(1);
  const T* all_points = points.const_data_ptr<T>();
  const T* all_queries = query.const_data_ptr<T>();
  std::vector<std::unique_ptr<pax::cpu::Neighbours<T>>> clouds(static_cast<std::size_t>(batch));
  const auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      clouds[b] = pax::cpu::Neighbours<T>::of(all_points + b * count * dims, sizes.points.of(b, count), dims,
                                              sizes.queries.of(b, queries), task, threads_of_one(batch));
  };
  at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (count * dims)), prepare);
  at::parallel_for(0, batch * queries, std::max<int64_t>(1, kGrain / (count * dims)), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / queries, last = std::min(end, (b + 1) * queries);
      const int64_t number = std::min(end, b * queries + sizes.queries.of(b, queries)) - begin;
      if (number > 0) search(*clouds[b], all_queries + begin * dims, begin, number, sizes.points.of(b, count));
      begin = last;
    }
  });
}

std::tuple<Tensor, Tensor> knn_of_each(const Tensor& query_, const Tensor& points_, int64_t k, const Sizes& sizes,
                                       const Tensor& squared, const Tensor& indices) {
  pax::check_k(k, points_);
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "knn", [&] {
    scalar_t* distance = squared.mutable_data_ptr<scalar_t>();
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(
        query, points, sizes, pax::cpu::Task::knn,
        [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number, int64_t count) {
          if (k <= count) {
            cloud.knn(some, number, k, distance + first * k, index + first * k);
            return;
          }
          for (int64_t row = first; row < first + number; ++row, some += query.size(2)) {
            cloud.knn(some, 1, count, distance + row * k, index + row * k);
            std::fill(distance + row * k + count, distance + (row + 1) * k, std::numeric_limits<scalar_t>::infinity());
            std::fill(index + row * k + count, index + (row + 1) * k, index[row * k]);
          }
        });
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& points, int64_t k) {
  pax::check_search(query, points);
  pax::check_k(k, points);
  const Tensor squared = at::empty({query.size(0), query.size(1), k}, query.options());
  return knn_of_each(query, points, k, {}, squared, pax::index_tensor(squared.sizes(), query));
}

std::tuple<Tensor, Tensor> ragged_knn(const Tensor& query, const Tensor& points, const Tensor& query_lengths,
                                      const Tensor& lengths, int64_t k) {
  const Sizes sizes = sizes_of(query, points, query_lengths, lengths);
  pax::check_k(k, points);
  const Tensor squared = at::zeros({query.size(0), query.size(1), k}, query.options());
  return knn_of_each(query, points, k, sizes, squared, at::zeros(squared.sizes(), query.options().dtype(at::kLong)));
}

std::tuple<Tensor, Tensor> nearest(const Tensor& query_, const Tensor& points_) {
  pax::check_search(query_, points_);
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor squared = at::empty({query.size(0), query.size(1)}, query.options());
  Tensor indices = pax::index_tensor(squared.sizes(), query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "nearest", [&] {
    scalar_t* distance = squared.mutable_data_ptr<scalar_t>();
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(query, points, {}, pax::cpu::Task::nearest,
                             [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number, int64_t) {
                               cloud.nearest(some, number, distance + first, index + first);
                             });
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> ball_of_each(const Tensor& query_, const Tensor& points_, double radius,
                                        int64_t num_samples, const Sizes& sizes, const Tensor& indices,
                                        const Tensor& counts) {
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "ball_query", [&] {
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    int64_t* number_of = counts.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(query, points, sizes, pax::cpu::Task::ball_query,
                             [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number, int64_t) {
                               cloud.ball_query(some, number, radius, num_samples, index + first * num_samples,
                                                number_of + first);
                             });
  });
  return {indices, counts};
}

void check_samples(int64_t num_samples) {
  TORCH_CHECK(num_samples >= 1, "num_samples=", num_samples, " must be at least 1");
}

std::tuple<Tensor, Tensor> ball_query(const Tensor& query, const Tensor& points, double radius, int64_t num_samples) {
  pax::check_search(query, points);
  check_samples(num_samples);
  return ball_of_each(query, points, radius, num_samples, {},
                      pax::index_tensor({query.size(0), query.size(1), num_samples}, query),
                      pax::index_tensor({query.size(0), query.size(1)}, query));
}

std::tuple<Tensor, Tensor> ragged_ball_query(const Tensor& query, const Tensor& points, const Tensor& query_lengths,
                                             const Tensor& lengths, double radius, int64_t num_samples) {
  const Sizes sizes = sizes_of(query, points, query_lengths, lengths);
  check_samples(num_samples);
  const auto options = query.options().dtype(at::kLong);
  return ball_of_each(query, points, radius, num_samples, sizes,
                      at::zeros({query.size(0), query.size(1), num_samples}, options),
                      at::zeros({query.size(0), query.size(1)}, options));
}

void require_indices(int64_t bad, int64_t rows, int64_t count) {
  TORCH_CHECK_INDEX(bad < 0, "indices of cloud ", bad / rows, ", row ", bad % rows, ": outside the ", count,
                    " points of each cloud");
}

// Runs kernel(begin, end) over the rows of indices (B, M, …); it returns the first row with a bad index or -1.
template <typename Kernel>
void for_each_row(const Tensor& indices, int64_t count, int64_t row_bytes, const Kernel& kernel) {
  std::atomic<int64_t> bad{-1};
  const int64_t rows = indices.size(0) * indices.size(1);
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / (row_bytes + 1)), [&](int64_t begin, int64_t end) {
    const int64_t row = kernel(begin, end);
    if (row >= 0) bad = row;
  });
  require_indices(bad, indices.size(1), count);
}

Tensor gather_points(const Tensor& points_, const Tensor& indices_) {
  pax::check_gather(points_, indices_, 2);
  const Tensor points = points_.contiguous(), indices = indices_.contiguous();
  const int64_t count = points.size(1), queries = indices.size(1);
  const int64_t row_bytes = points.size(2) * static_cast<int64_t>(points.element_size());
  Tensor out = at::empty({points.size(0), queries, points.size(2)}, points.options());
  const char* source = static_cast<const char*>(points.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for_each_row(indices, count, row_bytes, [&](int64_t begin, int64_t end) {
    return pax::cpu::gather_points(source, index, count, queries, row_bytes, begin, end, target);
  });
  return out;
}

Tensor interpolate(const Tensor& points_, const Tensor& indices_, const Tensor& weights_) {
  pax::check_interpolate(points_, indices_, weights_);
  const Tensor points = points_.contiguous(), indices = indices_.contiguous(), weights = weights_.contiguous();
  const int64_t count = points.size(1), channels = points.size(2), queries = indices.size(1), k = indices.size(2);
  Tensor out = at::empty({points.size(0), queries, channels}, points.options());
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "interpolate", [&] {
    for_each_row(indices, count, channels * k * static_cast<int64_t>(sizeof(scalar_t)),
                 [&](int64_t begin, int64_t end) {
                   return pax::cpu::interpolate(points.const_data_ptr<scalar_t>(),
                                                indices.const_data_ptr<int64_t>(),
                                                weights.const_data_ptr<scalar_t>(), count, queries, channels, k,
                                                begin, end, out.mutable_data_ptr<scalar_t>());
                 });
  });
  return out;
}

// The transpose of interpolate: values (B, M, C) of the queries, spread over `count` points.
Tensor spread(const Tensor& values_, const Tensor& indices_, const Tensor& weights_, int64_t count) {
  TORCH_CHECK(count >= 1, "count=", count, " must be at least 1");
  pax::check_interpolate(values_, indices_, weights_);
  TORCH_CHECK(values_.size(1) == indices_.size(1), "values ", values_.sizes(), " does not fit indices ",
              indices_.sizes());
  const Tensor values = values_.contiguous(), indices = indices_.contiguous(), weights = weights_.contiguous();
  const int64_t batch = values.size(0), queries = values.size(1), channels = values.size(2), k = indices.size(2);
  Tensor out = at::zeros({batch, count, channels}, values.options());
  // Channels of one cloud at a time, so that what is added to stays in the cache.
  constexpr int64_t kChannels = 256;
  const int64_t parts = (channels + kChannels - 1) / kChannels;
  std::atomic<int64_t> bad{-1};
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "spread", [&] {
    const scalar_t *value = values.const_data_ptr<scalar_t>(), *weight = weights.const_data_ptr<scalar_t>();
    const int64_t* index = indices.const_data_ptr<int64_t>();
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts, first = task % parts * kChannels;
        const int64_t row = pax::cpu::spread(
            value + b * queries * channels, index + b * queries * k, weight + b * queries * k, count, queries,
            channels, k, first, std::min(channels, first + kChannels), target + b * count * channels);
        if (row >= 0) bad = b * queries + row;
      }
    });
  });
  require_indices(bad, queries, count);
  return out;
}

// ---- The low-rank mixture ----

// Rows of a float32 tensor (…, size) with size >= 1, filled up with zeros.
struct Padded {
  explicit Padded(const Tensor& matrix)
      : size(matrix.size(-1)), stride((size + pax::cpu::kLanes - 1) / pax::cpu::kLanes * pax::cpu::kLanes) {
    const Tensor rows = matrix.contiguous();
    const float* from = rows.const_data_ptr<float>();
    values.resize(static_cast<std::size_t>(rows.numel() / size * stride));
    for (int64_t row = 0; row < rows.numel() / size; ++row)
      std::copy(from + row * size, from + (row + 1) * size, values.begin() + row * stride);
  }
  int64_t size, stride;
  std::vector<float> values;
};

// `router` (E, width), returned if it fits down_in (E, inner, width), down_out and up_in (E, inner, rank), bias (E, rank).
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

struct Bank {
  Bank(const Tensor& router_, const Tensor& down_in_, const Tensor& down_out_, const Tensor& bias_,
       const Tensor& up_in_)
      : router(checked_experts(router_, down_in_, down_out_, bias_, up_in_)),
        down_in(down_in_),
        down_out(down_out_),
        bias(bias_),
        up_in(up_in_),
        view{router_.size(0),       router.stride,          down_in_.size(1),   bias.stride,        router.values.data(),
             down_in.values.data(), down_out.values.data(), bias.values.data(), up_in.values.data()} {}
  Padded router, down_in, down_out, bias, up_in;
  pax::cpu::Experts view;
};

void check_tokens(const Tensor& tokens, const Bank& bank) {
  TORCH_CHECK(tokens.layout() == at::kStrided && tokens.dim() == 2 && tokens.size(1) % bank.router.size == 0 &&
                  (tokens.stride(1) == 1 || tokens.size(1) == 1),
              "tokens must be rows of sub-tokens, (B, n * ", bank.router.size, "), got ", tokens.sizes());
}

// Calls function(data, first, number) for ranges of the sub-tokens [begin, end), each of one sample: `data` is the first
// of them and `first` its position among all.
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
  // As many parts whatever the number of threads, so that sums do not depend on it.
  const int64_t parts = std::min<int64_t>(16, rows / 256 + 1), each = (rows + parts - 1) / parts;
  const auto zeros = [&](int64_t matrices, const Padded& like) {
    return at::zeros({parts, matrices, like.stride}, router.options());
  };
  Tensor d_router = zeros(number, bank.router), d_down_in = zeros(number * inner, bank.down_in),
         d_down_out = zeros(number * inner, bank.down_out), d_bias = zeros(number, bank.bias),
         d_up_in = zeros(number * inner, bank.up_in);
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(pointadapterx, m) {
  m.def("simd() -> str", [] { return std::string(pax::cpu::simd_name()); });
  m.def(
      "thin_experts(Tensor tokens, Tensor router, Tensor down_in, Tensor down_out, Tensor bias, Tensor up_in) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "thin_experts_backward(Tensor codes_gradient, Tensor gates_gradient, Tensor gates, Tensor chosen, Tensor "
      "squeezed, Tensor tokens, Tensor router, Tensor down_in, Tensor down_out, Tensor bias, Tensor up_in) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(pointadapterx, CPU, m) {
  m.impl("farthest_point_sample", farthest_point_sample);
  m.impl("knn", knn);
  m.impl("nearest", nearest);
  m.impl("ball_query", ball_query);
  m.impl("ragged_farthest_point_sample", ragged_farthest_point_sample);
  m.impl("ragged_knn", ragged_knn);
  m.impl("ragged_ball_query", ragged_ball_query);
  m.impl("gather_points", gather_points);
  m.impl("interpolate", interpolate);
  m.impl("spread", spread);
  m.impl("thin_experts", thin_experts);
  m.impl("thin_experts_backward", thin_experts_backward);
}
