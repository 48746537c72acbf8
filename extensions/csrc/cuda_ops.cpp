// Registers the CUDA kernels under the schemas of pointadapterx/ops/library.py.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "cuda/kernels.h"
#include "inputs.h"

namespace {

using at::Tensor;

// How many points and queries of each cloud are real, on the device; null: all.
struct Sizes {
  const int64_t *query = nullptr, *points = nullptr;
};

template <typename T>
pax::cuda::Search<T> search_of(const Tensor& query, const Tensor& points, const Sizes& sizes) {
  return {query.const_data_ptr<T>(), points.const_data_ptr<T>(), query.size(0), query.size(1),
          points.size(1),            points.size(2),             sizes.query,   sizes.points};
}

void check_launch(cudaError_t error, const char* op) {
  TORCH_CHECK(error == cudaSuccess, "pointadapterx::", op, " could not be launched: ", cudaGetErrorString(error),
              error == cudaErrorNoKernelImageForDevice
                  ? "; rebuild the point ops with TORCH_CUDA_ARCH_LIST set to this GPU's compute capability"
                  : "");
}

Tensor sample_each(const Tensor& points_, int64_t num_samples, int64_t start, bool skip_origin,
                   const int64_t* lengths) {
  pax::check_fps(points_, num_samples, start);
  const c10::cuda::CUDAGuard guard(points_.device());
  const Tensor points = points_.contiguous();
  Tensor chosen = pax::index_tensor({points.size(0), num_samples}, points);
  const bool large = points.size(1) > pax::cuda::kFpsInRegisters;
  Tensor scratch = at::empty({large ? points.size(0) : 0, points.size(1)}, points.options());
  Tensor partial = at::empty({large ? pax::cuda::kFpsPartialBytes : 0}, points.options().dtype(at::kByte));
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "farthest_point_sample", [&] {
    check_launch(pax::cuda::farthest_point_sample(points.const_data_ptr<scalar_t>(), points.size(0), points.size(1),
                                                  num_samples, start, skip_origin,
                                                  scratch.mutable_data_ptr<scalar_t>(), partial.mutable_data_ptr(),
                                                  chosen.mutable_data_ptr<int64_t>(),
                                                  c10::cuda::getCurrentCUDAStream(), lengths),
                 "farthest_point_sample");
  });
  return chosen;
}

Tensor farthest_point_sample(const Tensor& points, int64_t num_samples, int64_t start, bool skip_origin) {
  return sample_each(points, num_samples, start, skip_origin, nullptr);
}

Tensor ragged_farthest_point_sample(const Tensor& points, const Tensor& lengths_, int64_t num_samples, int64_t start,
                                    bool skip_origin) {
  pax::check_clouds(points, "points");
  pax::check_lengths(lengths_, points, "lengths");
  const Tensor lengths = lengths_.contiguous();
  return sample_each(points, num_samples, start, skip_origin, lengths.const_data_ptr<int64_t>());
}

std::tuple<Tensor, Tensor> knn_of_each(const Tensor& query_, const Tensor& points_, int64_t k, const Sizes& sizes) {
  pax::check_search(query_, points_);
  pax::check_k(k, points_);
  const c10::cuda::CUDAGuard guard(query_.device());
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor squared = at::empty({query.size(0), query.size(1), k}, query.options());
  Tensor indices = pax::index_tensor(squared.sizes(), query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "knn", [&] {
    check_launch(pax::cuda::knn(search_of<scalar_t>(query, points, sizes), k, squared.mutable_data_ptr<scalar_t>(),
                                indices.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()),
                 "knn");
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& points, int64_t k) {
  return knn_of_each(query, points, k, {});
}

std::tuple<Tensor, Tensor> ragged_knn(const Tensor& query, const Tensor& points, const Tensor& query_lengths_,
                                      const Tensor& lengths_, int64_t k) {
  pax::check_search(query, points);
  pax::check_lengths(query_lengths_, query, "query_lengths");
  pax::check_lengths(lengths_, points, "lengths");
  const Tensor query_lengths = query_lengths_.contiguous(), lengths = lengths_.contiguous();
  return knn_of_each(query, points, k, {query_lengths.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>()});
}

std::tuple<Tensor, Tensor> nearest(const Tensor& query_, const Tensor& points_) {
  pax::check_search(query_, points_);
  const c10::cuda::CUDAGuard guard(query_.device());
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor squared = at::empty({query.size(0), query.size(1)}, query.options());
  Tensor indices = pax::index_tensor(squared.sizes(), query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "nearest", [&] {
    check_launch(pax::cuda::nearest(search_of<scalar_t>(query, points, {}), squared.mutable_data_ptr<scalar_t>(),
                                    indices.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()),
                 "nearest");
  });
  return {squared, indices};
}

std::tuple<Tensor, Tensor> ball_of_each(const Tensor& query_, const Tensor& points_, double radius,
                                        int64_t num_samples, const Sizes& sizes) {
  pax::check_search(query_, points_);
  TORCH_CHECK(num_samples >= 1, "num_samples=", num_samples, " must be at least 1");
  const c10::cuda::CUDAGuard guard(query_.device());
  const Tensor query = query_.contiguous(), points = points_.contiguous();
  Tensor indices = pax::index_tensor({query.size(0), query.size(1), num_samples}, query);
  Tensor counts = pax::index_tensor({query.size(0), query.size(1)}, query);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "ball_query", [&] {
    check_launch(pax::cuda::ball_query(search_of<scalar_t>(query, points, sizes), radius, num_samples,
                                       indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>(),
                                       c10::cuda::getCurrentCUDAStream()),
                 "ball_query");
  });
  return {indices, counts};
}

std::tuple<Tensor, Tensor> ball_query(const Tensor& query, const Tensor& points, double radius, int64_t num_samples) {
  return ball_of_each(query, points, radius, num_samples, {});
}

std::tuple<Tensor, Tensor> ragged_ball_query(const Tensor& query, const Tensor& points, const Tensor& query_lengths_,
                                             const Tensor& lengths_, double radius, int64_t num_samples) {
  pax::check_search(query, points);
  pax::check_lengths(query_lengths_, query, "query_lengths");
  pax::check_lengths(lengths_, points, "lengths");
  const Tensor query_lengths = query_lengths_.contiguous(), lengths = lengths_.contiguous();
  return ball_of_each(query, points, radius, num_samples,
                      {query_lengths.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>()});
}

Tensor gather_points(const Tensor& points_, const Tensor& indices_) {
  pax::check_gather(points_, indices_, 2);
  const c10::cuda::CUDAGuard guard(points_.device());
  const Tensor points = points_.contiguous(), indices = indices_.contiguous();
  Tensor out = at::empty({points.size(0), indices.size(1), points.size(2)}, points.options());
  check_launch(pax::cuda::gather_points(points.const_data_ptr(), indices.const_data_ptr<int64_t>(), points.size(0),
                                        points.size(1), indices.size(1), points.size(2),
                                        static_cast<int64_t>(points.element_size()), out.mutable_data_ptr(),
                                        c10::cuda::getCurrentCUDAStream()),
               "gather_points");
  return out;
}

Tensor interpolate(const Tensor& points_, const Tensor& indices_, const Tensor& weights_) {
  pax::check_interpolate(points_, indices_, weights_);
  const c10::cuda::CUDAGuard guard(points_.device());
  const Tensor points = points_.contiguous(), indices = indices_.contiguous(), weights = weights_.contiguous();
  Tensor out = at::empty({points.size(0), indices.size(1), points.size(2)}, points.options());
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "interpolate", [&] {
    check_launch(pax::cuda::interpolate(points.const_data_ptr<scalar_t>(), indices.const_data_ptr<int64_t>(),
                                        weights.const_data_ptr<scalar_t>(), points.size(0), points.size(1),
                                        indices.size(1), points.size(2), indices.size(2),
                                        out.mutable_data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream()),
                 "interpolate");
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pointadapterx, CUDA, m) {
  m.impl("farthest_point_sample", farthest_point_sample);
  m.impl("knn", knn);
  m.impl("nearest", nearest);
  m.impl("ball_query", ball_query);
  m.impl("ragged_farthest_point_sample", ragged_farthest_point_sample);
  m.impl("ragged_knn", ragged_knn);
  m.impl("ragged_ball_query", ragged_ball_query);
  m.impl("gather_points", gather_points);
  m.impl("interpolate", interpolate);
}
