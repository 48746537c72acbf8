// Registers the CPU kernels under the schemas of pointadapterx/ops/library.py.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
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

Tensor farthest_point_sample(const Tensor& points_, int64_t num_samples, int64_t start, bool skip_origin) {
  pax::check_fps(points_, num_samples, start);
  check_count(points_);
  const Tensor points = points_.contiguous();
  const int64_t batch = points.size(0), count = points.size(1);
  Tensor chosen = pax::index_tensor({batch, num_samples}, points);
  int64_t* out = chosen.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "farthest_point_sample", [&] {
    const scalar_t* data = points.const_data_ptr<scalar_t>();
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        pax::cpu::farthest_point_sample<scalar_t>(data + b * count * 3, count, num_samples, start, skip_origin,
                                                  threads_of_one(batch), out + b * num_samples);
    });
  });
  return chosen;
}

// Makes each cloud ready, then calls search(neighbours, query, first, number) for ranges of the flattened queries, each
// of one cloud: `query` is the first of them and `first` its position among all.
template <typename T, typename Search>
void for_each_query(const Tensor& query, const Tensor& points, pax::cpu::Task task, const Search& search) {
  check_count(points);
  const int64_t batch = points.size(0), count = points.size(1), dims = points.size(2), queries = query.size(1);
  const T* all_points = points.const_data_ptr<T>();
  const T* all_queries = query.const_data_ptr<T>();
  std::vector<std::unique_ptr<pax::cpu::Neighbours<T>>> clouds(static_cast<std::size_t>(batch));
  const auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      clouds[b] = pax::cpu::Neighbours<T>::of(all_points + b * count * dims, count, dims, queries, task,
                                              threads_of_one(batch));
  };
  at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (count * dims)), prepare);
  at::parallel_for(0, batch * queries, std::max<int64_t>(1, kGrain / (count * dims)), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / queries, number = std::min(end, (b + 1) * queries) - begin;
      search(*clouds[b], all_queries + begin * dims, begin, number);
      begin += number;
    }
  });
}

std::tuple<Tensor, Tensor> knn(const Tensor& query_, const Tensor& points_, int64_t k) {
  pax::check_search(query_, points_);
  pax::check_k(k, points_);
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor squared = at::empty({query.size(0), query.size(1), k}, query.options());
  Tensor indices = pax::index_tensor(squared.sizes(), query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "knn", [&] {
    scalar_t* distance = squared.mutable_data_ptr<scalar_t>();
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(query, points, pax::cpu::Task::knn,
                             [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number) {
                               cloud.knn(some, number, k, distance + first * k, index + first * k);
                             });
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> nearest(const Tensor& query_, const Tensor& points_) {
  pax::check_search(query_, points_);
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor squared = at::empty({query.size(0), query.size(1)}, query.options());
  Tensor indices = pax::index_tensor(squared.sizes(), query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "nearest", [&] {
    scalar_t* distance = squared.mutable_data_ptr<scalar_t>();
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(query, points, pax::cpu::Task::nearest,
                             [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number) {
                               cloud.nearest(some, number, distance + first, index + first);
                             });
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> ball_query(const Tensor& query_, const Tensor& points_, double radius,
                                      int64_t num_samples) {
  pax::check_search(query_, points_);
  TORCH_CHECK(num_samples >= 1, "num_samples=", num_samples, " must be at least 1");
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor indices = pax::index_tensor({query.size(0), query.size(1), num_samples}, query);
  Tensor counts = pax::index_tensor({query.size(0), query.size(1)}, query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "ball_query", [&] {
    int64_t* index = indices.mutable_data_ptr<int64_t>();
    int64_t* number_of = counts.mutable_data_ptr<int64_t>();
    for_each_query<scalar_t>(query, points, pax::cpu::Task::ball_query,
                             [&](const auto& cloud, const scalar_t* some, int64_t first, int64_t number) {
                               cloud.ball_query(some, number, radius, num_samples, index + first * num_samples,
                                                number_of + first);
                             });
  });
  return {indices, counts};
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
  TORCH_CHECK_INDEX(bad < 0, "indices of cloud ", bad / indices.size(1), ", row ", bad % indices.size(1),
                    ": outside the ", count, " points of each cloud");
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(pointadapterx, m) {
  m.def("simd() -> str", [] { return std::string(pax::cpu::simd_name()); });
}

TORCH_LIBRARY_IMPL(pointadapterx, CPU, m) {
  m.impl("farthest_point_sample", farthest_point_sample);
  m.impl("knn", knn);
  m.impl("nearest", nearest);
  m.impl("ball_query", ball_query);
  m.impl("gather_points", gather_points);
  m.impl("interpolate", interpolate);
}
