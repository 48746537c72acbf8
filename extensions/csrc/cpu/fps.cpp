#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "buckets.h"
#include "kernels.h"
#include "simd.h"

namespace pax::cpu {
namespace {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Points as columns; `nearest` is the squared distance to the chosen set, -1 for what is not a candidate.
template <typename T>
struct Columns {
  const T *x, *y, *z;
  T* nearest;
};

template <typename T>
struct Centre {
  T x, y, z;
};

// Lowers `nearest` of one vector of points by the distances to a centre, and returns it.
template <int Bytes, typename T>
PAX_INLINE auto lower(const Columns<T>& points, int64_t i, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  const auto dx = centre.x - S::load(points.x + i), dy = centre.y - S::load(points.y + i),
             dz = centre.z - S::load(points.z + i);
  const auto nearest = S::least((dx * dx + dy * dy) + dz * dz, S::load(points.nearest + i));
  S::store(points.nearest + i, nearest);
  return nearest;
}

// ---- All points at once, for small clouds ----

template <typename T>
struct Small {
  Columns<T> points;
  int64_t size;  // padded
};

// Lowers `nearest` by the distances to a new centre and returns the index of its first maximum.
template <int Bytes, typename T>
PAX_INLINE int64_t advance(const Small<T>& cloud, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  constexpr int64_t kStep = 4 * S::kWidth;
  auto best = S::every(-1);
  typename S::Mask where{};  // per lane: the first step that had its best
  for (int64_t begin = 0; begin < cloud.size; begin += kStep) {
    auto top = lower<Bytes>(cloud.points, begin, centre);
    for (int64_t i = begin + S::kWidth; i < begin + kStep; i += S::kWidth)
      top = S::most(top, lower<Bytes>(cloud.points, i, centre));
    const typename S::Mask more = top > best;
    best = more ? top : best;
    where = more ? typename S::Mask{} + static_cast<typename S::Integer>(begin) : where;
  }
  const T maximum = S::maximum(best);
  if (maximum < 0) return 0;  // no candidate is left
  int64_t index = cloud.size;
  for (int64_t lane = 0; lane < S::kWidth; ++lane)
    if (best[lane] == maximum) index = std::min(index, static_cast<int64_t>(where[lane]));
  while (cloud.points.nearest[index] != maximum) ++index;
  return index;
}

PAX_DISPATCH(int64_t, advance, (const Small<float>& cloud, const Centre<float>& centre), (cloud, centre), advance)
PAX_DISPATCH(int64_t, advance, (const Small<double>& cloud, const Centre<double>& centre), (cloud, centre), advance)

template <typename T>
bool is_candidate(const T* point, bool skip_origin) {
  const T norm = (point[0] * point[0] + point[1] * point[1]) + point[2] * point[2];
  return !(skip_origin && static_cast<double>(norm) <= 1e-3);
}

template <typename T>
void sample_small(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin, int64_t* chosen) {
  const int64_t size = padded(count);
  std::vector<T> buffer(static_cast<std::size_t>(4 * size), T(0));
  T *x = buffer.data(), *y = x + size, *z = y + size, *nearest = z + size;
  for (int64_t i = 0; i < count; ++i) {
    x[i] = points[3 * i];
    y[i] = points[3 * i + 1];
    z[i] = points[3 * i + 2];
    nearest[i] = is_candidate(points + 3 * i, skip_origin) ? kInfinity<T> : T(-1);
  }
  std::fill(nearest + count, nearest + size, T(-1));

  const Small<T> cloud{{x, y, z, nearest}, size};
  int64_t current = start;
  for (int64_t s = 0; s < samples; ++s) {
    chosen[s] = current;
    if (!skip_origin) nearest[current] = T(-1);
    if (s + 1 < samples) current = advance(cloud, Centre<T>{x[current], y[current], z[current]});
  }
}

// ---- Leaf by leaf, for large clouds ----

// A box of points and their largest `nearest`. A box that is farther from the new centre than that stays as it is.
// Distances to boxes are rounded as those to points, so that rounding skips none.
template <typename T>
struct Boxes {
  std::vector<T> low[3], high[3], farthest;

  explicit Boxes(int64_t size) {
    for (int axis = 0; axis < 3; ++axis) {
      low[axis].resize(static_cast<std::size_t>(size));
      high[axis].resize(static_cast<std::size_t>(size));
    }
    farthest.assign(static_cast<std::size_t>(size), T(-1));
  }
};

constexpr int64_t kGroup = 16;  // leaves of a group

template <typename T>
struct Forest {
  Columns<T> points;
  const typename Buckets<T>::Index* index;
  std::vector<int64_t> begin, end;  // places of the leaves
  Boxes<T> leaves, groups;
};

// Which of the boxes from i on have points that a new centre may be nearest to.
template <int Bytes, typename T>
PAX_INLINE auto changes(const Boxes<T>& boxes, int64_t i, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  const T at[3] = {centre.x, centre.y, centre.z};
  typename S::Vector outside[3];
  for (int axis = 0; axis < 3; ++axis)
    outside[axis] = S::most(S::most(S::load(boxes.low[axis].data() + i) - at[axis],
                                    at[axis] - S::load(boxes.high[axis].data() + i)),
                            S::every(0));
  const auto distance = (outside[0] * outside[0] + outside[1] * outside[1]) + outside[2] * outside[2];
  return distance < S::load(boxes.farthest.data() + i);
}

template <int Bytes, typename T>
PAX_INLINE void update_leaf(Forest<T>& forest, int64_t leaf, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  auto best = S::every(-1);
  for (int64_t i = forest.begin[leaf]; i < forest.end[leaf]; i += S::kWidth)
    best = S::most(best, lower<Bytes>(forest.points, i, centre));
  forest.leaves.farthest[leaf] = S::maximum(best);
}

template <int Bytes, typename T>
PAX_INLINE void update_group(Forest<T>& forest, int64_t group, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  auto best = S::every(-1);
  for (int64_t i = group * kGroup; i < (group + 1) * kGroup; i += S::kWidth) {
    const auto changed = changes<Bytes>(forest.leaves, i, centre);
    for (int64_t lane = 0; lane < S::kWidth; ++lane)
      if (changed[lane]) update_leaf<Bytes>(forest, i + lane, centre);
    best = S::most(best, S::load(forest.leaves.farthest.data() + i));
  }
  forest.groups.farthest[group] = S::maximum(best);
}

// Updates all groups, and returns the largest distance of their points from the chosen set.
template <int Bytes, typename T>
PAX_INLINE T advance_forest(Forest<T>& forest, const Centre<T>& centre) {
  using S = Simd<Bytes, T>;
  auto best = S::every(-1);
  for (int64_t i = 0; i < static_cast<int64_t>(forest.groups.farthest.size()); i += S::kWidth) {
    const auto changed = changes<Bytes>(forest.groups, i, centre);
    if (S::any(changed))
      for (int64_t lane = 0; lane < S::kWidth; ++lane)
        if (changed[lane]) update_group<Bytes>(forest, i + lane, centre);
    best = S::most(best, S::load(forest.groups.farthest.data() + i));
  }
  return S::maximum(best);
}

PAX_DISPATCH(float, advance_forest, (Forest<float>& forest, const Centre<float>& centre), (forest, centre),
             advance_forest)
PAX_DISPATCH(double, advance_forest, (Forest<double>& forest, const Centre<double>& centre), (forest, centre),
             advance_forest)

struct Place {
  int64_t index, leaf, at;
};

// The lowest index of a point that is `maximum` away.
template <typename T>
Place find(const Forest<T>& forest, T maximum) {
  Place found{std::numeric_limits<int64_t>::max(), 0, 0};
  for (int64_t group = 0; group < static_cast<int64_t>(forest.groups.farthest.size()); ++group) {
    if (forest.groups.farthest[group] != maximum) continue;
    for (int64_t leaf = group * kGroup; leaf < (group + 1) * kGroup; ++leaf) {
      if (forest.leaves.farthest[leaf] != maximum) continue;
      for (int64_t p = forest.begin[leaf]; p < forest.end[leaf]; ++p)
        if (forest.points.nearest[p] == maximum && forest.index[p] < found.index) found = {forest.index[p], leaf, p};
    }
  }
  return found;
}

template <typename T>
void sample_large(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin, int threads,
                  int64_t* chosen) {
  const Buckets<T> buckets(points, count, threads);
  const int64_t leaf_count = static_cast<int64_t>(buckets.nodes.size() + 1) / 2;
  const int64_t groups = padded((leaf_count + kGroup - 1) / kGroup);
  const auto nearest = make_array<T>(buckets.places);
  Forest<T> forest{{buckets.x.get(), buckets.y.get(), buckets.z.get(), nearest.get()},
                   buckets.index.get(),
                   std::vector<int64_t>(static_cast<std::size_t>(groups * kGroup)),
                   std::vector<int64_t>(static_cast<std::size_t>(groups * kGroup)),
                   Boxes<T>(groups * kGroup),
                   Boxes<T>(groups)};
  Place current{start, 0, 0};
  int64_t leaf = 0;
  for (const auto& node : buckets.nodes) {
    if (node.right != 0) continue;
    const int64_t group = leaf / kGroup;
    forest.begin[leaf] = node.begin;
    forest.end[leaf] = node.end;
    for (int axis = 0; axis < 3; ++axis) {
      T &low = forest.groups.low[axis][group], &high = forest.groups.high[axis][group];
      forest.leaves.low[axis][leaf] = node.low[axis];
      forest.leaves.high[axis][leaf] = node.high[axis];
      low = leaf % kGroup == 0 ? node.low[axis] : std::min(low, node.low[axis]);
      high = leaf % kGroup == 0 ? node.high[axis] : std::max(high, node.high[axis]);
    }
    for (int64_t p = node.begin; p < node.end; ++p) {
      const int64_t i = buckets.index[p];
      nearest[p] = i < count && is_candidate(points + 3 * i, skip_origin) ? kInfinity<T> : T(-1);
      forest.leaves.farthest[leaf] = std::max(forest.leaves.farthest[leaf], nearest[p]);
      if (i == start) current = {i, leaf, p};
    }
    forest.groups.farthest[group] = std::max(forest.groups.farthest[group], forest.leaves.farthest[leaf]);
    ++leaf;
  }
  for (int64_t s = 0; s < samples; ++s) {
    chosen[s] = current.index;
    if (s + 1 == samples) break;
    if (!skip_origin) {  // no candidate any more, which its boxes have to learn in any case
      nearest[current.at] = T(-1);
      forest.leaves.farthest[current.leaf] = forest.groups.farthest[current.leaf / kGroup] = kInfinity<T>;
    }
    const T* at = points + 3 * current.index;
    const T maximum = advance_forest(forest, Centre<T>{at[0], at[1], at[2]});
    current = maximum < 0 ? Place{0, 0, 0} : find(forest, maximum);
  }
}

}  // namespace

template <typename T>
void farthest_point_sample(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin,
                           int threads, int64_t* chosen) {
  const bool fits = count >= 4096 && count < Buckets<T>::kNone && samples >= 64;  // see `python -m benchmarks ops`
  if (fits && all_finite(points, 3 * count))
    sample_large(points, count, samples, start, skip_origin, threads, chosen);
  else
    sample_small(points, count, samples, start, skip_origin, chosen);
}

template void farthest_point_sample(const float*, int64_t, int64_t, int64_t, bool, int, int64_t*);
template void farthest_point_sample(const double*, int64_t, int64_t, int64_t, bool, int, int64_t*);

}  // namespace pax::cpu
