// What both bindings require of their inputs to stay inside memory. The messages users see come from
// pointadapterx/ops/checks.py; these stop direct calls of torch.ops.pointadapterx.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace pax {

inline at::Tensor index_tensor(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kLong));
}

inline void check_clouds(const at::Tensor& points, const char* name) {
  TORCH_CHECK(points.dim() == 3 && points.size(1) > 0 && points.size(2) > 0, name,
              " must be (B, N, D) with N, D >= 1, got ", points.sizes());
}

// The public functions upcast half precision; the kernels compute in the type that they are given.
inline void check_type(const at::Tensor& values, const char* name) {
  TORCH_CHECK(values.scalar_type() == at::kFloat || values.scalar_type() == at::kDouble, name, " is ",
              values.scalar_type(), "; the compiled ops take float32 and float64, so convert it first");
}

// lengths (B,) of clouds (B, N, D): how many of their N points are real. The values are for the kernels to check.
inline void check_lengths(const at::Tensor& lengths, const at::Tensor& points, const char* name) {
  TORCH_CHECK(lengths.dim() == 1 && lengths.size(0) == points.size(0), name, " must be (B=", points.size(0), "), got ",
              lengths.sizes());
  TORCH_CHECK(lengths.scalar_type() == at::kLong, name, " must be int64, got ", lengths.scalar_type());
  TORCH_CHECK(lengths.device() == points.device(), name, " is on ", lengths.device(), ", the points on ",
              points.device());
}

inline void check_fps(const at::Tensor& points, int64_t num_samples, int64_t start) {
  check_clouds(points, "points");
  TORCH_CHECK(points.size(2) == 3, "points must be (B, N, 3), got ", points.sizes());
  check_type(points, "points");
  TORCH_CHECK(num_samples >= 0 && num_samples <= points.size(1), "num_samples=", num_samples,
              " must be at most N=", points.size(1));
  TORCH_CHECK(start >= 0 && start < points.size(1), "start=", start, " must be in [0, N=", points.size(1), ")");
}

inline void check_search(const at::Tensor& query, const at::Tensor& points) {
  check_clouds(points, "points");
  check_type(points, "points");
  TORCH_CHECK(query.dim() == 3 && query.size(0) == points.size(0) && query.size(2) == points.size(2),
              "query ", query.sizes(), " does not fit points ", points.sizes());
  TORCH_CHECK(query.scalar_type() == points.scalar_type(), "query is ", query.scalar_type(), ", points is ",
              points.scalar_type());
  TORCH_CHECK(query.device() == points.device(), "query is on ", query.device(), ", points on ", points.device());
}

inline void check_k(int64_t k, const at::Tensor& points) {
  TORCH_CHECK(k >= 1 && k <= points.size(1), "k=", k, " must be in [1, N=", points.size(1), "]");
}

inline void check_gather(const at::Tensor& points, const at::Tensor& indices, int64_t axes) {
  TORCH_CHECK(points.dim() == 3 && points.size(1) > 0, "points must be (B, N, C) with N >= 1, got ",
              points.sizes());
  TORCH_CHECK(indices.dim() == axes && indices.size(0) == points.size(0), "indices ", indices.sizes(),
              " does not fit points ", points.sizes());
  TORCH_CHECK(indices.scalar_type() == at::kLong, "indices must be int64, got ", indices.scalar_type());
  TORCH_CHECK(indices.device() == points.device(), "indices is on ", indices.device(), ", points on ",
              points.device());
}

inline void check_interpolate(const at::Tensor& points, const at::Tensor& indices, const at::Tensor& weights) {
  check_gather(points, indices, 3);
  check_type(points, "points");
  TORCH_CHECK(weights.sizes() == indices.sizes() && weights.scalar_type() == points.scalar_type() &&
                  weights.device() == points.device(),
              "weights must have the shape of indices ", indices.sizes(), " and the type and device of points");
}

}  // namespace pax
