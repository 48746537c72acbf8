// Registers the CPU kernels of the point ops under the schemas of pointadapterx/ops/library.py.

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

}  // namespace

TORCH_LIBRARY_FRAGMENT(pointadapterx, m) {
  m.def("simd() -> str", [] { return std::string(pax::cpu::simd_name()); });
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
}
