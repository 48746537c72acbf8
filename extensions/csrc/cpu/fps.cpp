#include <cstddef>
#include <limits>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace pax::cpu {
namespace {

template <typename T>
struct Cloud {
  const T *x, *y, *z;
  T* nearest;  // squared distance to the chosen set; -1 for what is not a candidate
  int64_t padded_count;
};

// Lowers `nearest` by the distances to a new centre and returns the index of its first maximum.
template <typename T>
PAX_INLINE int64_t advance(const Cloud<T>& cloud, T cx, T cy, T cz) {
  constexpr int64_t kLanes = 16;
  T best = -1;
  int64_t best_block = -1;
  for (int64_t begin = 0; begin < cloud.padded_count; begin += kBlock) {
    const T* PAX_RESTRICT x = cloud.x + begin;
    const T* PAX_RESTRICT y = cloud.y + begin;
    const T* PAX_RESTRICT z = cloud.z + begin;
    T* PAX_RESTRICT nearest = cloud.nearest + begin;
    for (int64_t i = 0; i < kBlock; ++i) {
      const T dx = cx - x[i], dy = cy - y[i], dz = cz - z[i];
      const T distance = (dx * dx + dy * dy) + dz * dz;
      nearest[i] = distance < nearest[i] ? distance : nearest[i];
    }
    // One maximum per lane: a single running maximum could not be vectorised without reordering.
    T lane[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = nearest[l];
    for (int64_t i = kLanes; i < kBlock; i += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) lane[l] = nearest[i + l] > lane[l] ? nearest[i + l] : lane[l];
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l) lane[l] = lane[l + width] > lane[l] ? lane[l + width] : lane[l];
    if (lane[0] > best) {
      best = lane[0];
      best_block = begin;
    }
  }
  if (best_block < 0) return 0;  // no candidate is left
  int64_t index = best_block;
  while (cloud.nearest[index] != best) ++index;
  return index;
}

PAX_CLONES int64_t advance_clones(const Cloud<float>& cloud, float x, float y, float z) {
  return advance(cloud, x, y, z);
}
PAX_CLONES int64_t advance_clones(const Cloud<double>& cloud, double x, double y, double z) {
  return advance(cloud, x, y, z);
}

}  // namespace

template <typename T>
void farthest_point_sample(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin,
                           int64_t* chosen) {
  const int64_t size = padded(count);
  std::vector<T> buffer(static_cast<std::size_t>(4 * size), T(0));
  T *x = buffer.data(), *y = x + size, *z = y + size, *nearest = z + size;
  for (int64_t i = 0; i < count; ++i) {
    x[i] = points[3 * i];
    y[i] = points[3 * i + 1];
    z[i] = points[3 * i + 2];
    const T norm = (x[i] * x[i] + y[i] * y[i]) + z[i] * z[i];
    const bool candidate = !(skip_origin && static_cast<double>(norm) <= 1e-3);
    nearest[i] = candidate ? std::numeric_limits<T>::infinity() : T(-1);
  }
  for (int64_t i = count; i < size; ++i) nearest[i] = T(-1);

  const Cloud<T> cloud{x, y, z, nearest, size};
  int64_t current = start;
  for (int64_t s = 0; s < samples; ++s) {
    chosen[s] = current;
    if (!skip_origin) nearest[current] = T(-1);
    if (s + 1 < samples) current = advance_clones(cloud, x[current], y[current], z[current]);
  }
}

template void farthest_point_sample(const float*, int64_t, int64_t, int64_t, bool, int64_t*);
template void farthest_point_sample(const double*, int64_t, int64_t, int64_t, bool, int64_t*);

}  // namespace pax::cpu
