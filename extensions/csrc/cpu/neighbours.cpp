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

// ---- Candidates: a squared distance and an index in one value, whose order is that of the neighbours ----

template <typename T>
struct Candidate;

template <>
struct Candidate<float> {
  uint64_t key;  // the bits of a float that is not negative are in order
  Candidate() = default;
  Candidate(float squared, int64_t index) {
    uint32_t bits;
    std::memcpy(&bits, &squared, sizeof bits);
    key = static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(index);
  }
  float squared() const {
    const auto bits = static_cast<uint32_t>(key >> 32);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  int64_t index() const { return static_cast<int64_t>(key & 0xffffffffu); }
  bool operator<(const Candidate& other) const { return key < other.key; }
};

template <>
struct Candidate<double> {
  double distance;
  int64_t place;
  Candidate() = default;
  Candidate(double squared, int64_t index) : distance(squared), place(index) {}
  double squared() const { return distance; }
  int64_t index() const { return place; }
  bool operator<(const Candidate& other) const {
    return distance < other.distance || (distance == other.distance && place < other.place);
  }
};

// Writes the first k of some candidates, in order.
template <typename T>
PAX_INLINE void write_first(Candidate<T>* candidates, int64_t count, int64_t k, T* squared, int64_t* indices) {
  constexpr int64_t kFew = 160;
  const auto write = [&](int64_t rank, const Candidate<T>& candidate) {
    squared[rank] = candidate.squared();
    indices[rank] = candidate.index();
  };
  if (count > kFew) {
    std::partial_sort(candidates, candidates + k, candidates + count);
    for (int64_t i = 0; i < k; ++i) write(i, candidates[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {  // counting who comes before has no branches
    int64_t rank = 0;
    for (int64_t j = 0; j < count; ++j) rank += candidates[j] < candidates[i];
    if (rank < k) write(rank, candidates[i]);
  }
}

// ---- All points, for small clouds and for any number of coordinates ----

template <typename T>
struct Columns {
  const T* values;  // (dims, size), padded with points at infinity
  int64_t count, size, dims;
};

// Squared distances from a query to one vector of points.
template <int Bytes, typename T>
PAX_INLINE auto distances(const Columns<T>& columns, int64_t i, const T* query) {
  using S = Simd<Bytes, T>;
  auto difference = query[0] - S::load(columns.values + i);
  auto sum = difference * difference;
  for (int64_t d = 1; d < columns.dims; ++d) {
    difference = query[d] - S::load(columns.values + d * columns.size + i);
    sum += difference * difference;
  }
  return S::least(sum, S::every(kInfinity<T>));  // of a NaN: infinity
}

template <typename T>
struct Scratch {
  std::vector<T> squared, minima;
  std::vector<Candidate<T>> candidates;
};

// A value that at least k and about k of the minima do not exceed. All are >= 0, so that their bits are in order.
template <int Bytes, typename T>
PAX_INLINE T threshold(const T* minima, int64_t size, int64_t k) {
  using S = Simd<Bytes, T>;
  using Integer = typename S::Integer;
  const Integer slack = static_cast<Integer>(k / 8);
  auto most = S::every(0);
  for (int64_t i = 0; i < size; i += S::kWidth) most = S::most(most, S::load(minima + i));
  const T top = S::maximum(most);
  Integer low = -1, high;  // fewer than k are <= low, at least k are <= high
  std::memcpy(&high, &top, sizeof high);
  while (high - low > 1) {
    const Integer middle = low + (high - low) / 2;
    typename S::Mask count{};
    for (int64_t i = 0; i < size; i += S::kWidth) {
      typename S::Mask bits;
      std::memcpy(&bits, minima + i, sizeof bits);
      count -= bits <= middle;
    }
    Integer number = 0;
    for (int64_t lane = 0; lane < S::kWidth; ++lane) number += count[lane];
    if (number < k) {
      low = middle;
      continue;
    }
    high = middle;
    if (number <= k + slack) break;
  }
  T value;
  std::memcpy(&value, &high, sizeof value);
  return value;
}

// One query. The smallest distance of each of a few classes of points bounds the k-th smallest of all, so that few more
// than k points have to be sorted.
template <int Bytes, typename T>
PAX_INLINE void knn_of_all(const Columns<T>& columns, const T* query, int64_t k, Scratch<T>& scratch, T* squared,
                           int64_t* indices) {
  using S = Simd<Bytes, T>;
  const auto classes = static_cast<int64_t>(scratch.minima.size());
  T *distance = scratch.squared.data(), *minima = scratch.minima.data();
  for (int64_t begin = 0; begin < columns.size; begin += classes)
    for (int64_t i = 0; i < std::min(classes, columns.size - begin); i += S::kWidth) {
      const auto some = columns.dims == 3 ? distances<Bytes>(Columns<T>{columns.values, columns.count, columns.size, 3},
                                                             begin + i, query)
                                          : distances<Bytes>(columns, begin + i, query);
      S::store(distance + begin + i, some);
      S::store(minima + i, begin == 0 ? some : S::least(some, S::load(minima + i)));
    }
  const T limit = threshold<Bytes>(minima, classes, k);
  Candidate<T>* candidates = scratch.candidates.data();
  int64_t found = 0;
  for (int64_t begin = 0; begin < columns.size; begin += kBlock) {
    uint64_t near = 0;
    for (int64_t i = 0; i < kBlock; i += S::kWidth)
      near |= S::bits(S::load(distance + begin + i) <= limit) << i;
    for (; near != 0; near &= near - 1) {
      const int64_t i = begin + __builtin_ctzll(near);
      candidates[found++] = Candidate<T>(distance[i], i);
    }
  }
  write_first(candidates, found, k, squared, indices);
}

template <int Bytes, typename T>
PAX_INLINE void nearest_of_all(const Columns<T>& columns, const T* query, T* squared, int64_t* index) {
  using S = Simd<Bytes, T>;
  auto best = S::every(kInfinity<T>);
  typename S::Mask where{};
  for (int64_t i = 0; i < columns.size; i += S::kWidth) {
    const auto distance = distances<Bytes>(columns, i, query);
    const typename S::Mask less = distance < best;
    best = less ? distance : best;
    where = less ? typename S::Mask{} + static_cast<typename S::Integer>(i) : where;
  }
  Candidate<T> first(kInfinity<T>, 0);
  for (int64_t lane = 0; lane < S::kWidth; ++lane)
    if (best[lane] < kInfinity<T>) first = std::min(first, Candidate<T>(best[lane], where[lane] + lane));
  *squared = first.squared();
  *index = first.index();
}

template <int Bytes, typename T>
PAX_INLINE int64_t ball_of_all(const Columns<T>& columns, const T* query, T limit, int64_t samples, int64_t* found) {
  using S = Simd<Bytes, T>;
  int64_t number = 0;
  for (int64_t i = 0; i < columns.size && number < samples; i += S::kWidth) {
    uint64_t inside = S::bits(distances<Bytes>(columns, i, query) < limit);
    for (; inside != 0 && number < samples; inside &= inside - 1) found[number++] = i + __builtin_ctzll(inside);
  }
  return number;
}

// ---- A tree, for many queries of large clouds. Distances to boxes are rounded as those to points, so that rounding
// loses none; a box at just the limit is looked into, as a tie of a lower index counts. ----

template <typename T>
PAX_INLINE T distance_to(const typename Buckets<T>::Node& node, const T* query) {
  T outside[3];
  for (int axis = 0; axis < 3; ++axis)
    outside[axis] = std::max(std::max(node.low[axis] - query[axis], query[axis] - node.high[axis]), T(0));
  return (outside[0] * outside[0] + outside[1] * outside[1]) + outside[2] * outside[2];
}

template <typename T>
struct Visit {
  int64_t node;
  T squared;  // to its box
};

// Calls leaf(node, limit) for leaves from near to far, as long as they are not farther than the limit, which it lowers.
template <typename T, typename Leaf>
PAX_INLINE void descend(const Buckets<T>& buckets, const T* query, T limit, std::vector<Visit<T>>& stack,
                        const Leaf& leaf) {
  stack.assign(1, {0, distance_to<T>(buckets.nodes[0], query)});
  while (!stack.empty()) {
    const Visit<T> visit = stack.back();
    stack.pop_back();
    if (visit.squared > limit) continue;
    const auto& node = buckets.nodes[static_cast<std::size_t>(visit.node)];
    if (node.right == 0) {
      leaf(node, limit);
      continue;
    }
    Visit<T> near{visit.node + 1, distance_to<T>(buckets.nodes[static_cast<std::size_t>(visit.node + 1)], query)};
    Visit<T> far{node.right, distance_to<T>(buckets.nodes[static_cast<std::size_t>(node.right)], query)};
    if (far.squared < near.squared) std::swap(near, far);
    if (!(far.squared > limit)) stack.push_back(far);  // also if NaN, of a query that is
    if (!(near.squared > limit)) stack.push_back(near);
  }
}

template <int Bytes, typename T>
PAX_INLINE auto distances(const Buckets<T>& buckets, int64_t i, const T* query) {
  using S = Simd<Bytes, T>;
  const auto dx = query[0] - S::load(buckets.x.get() + i), dy = query[1] - S::load(buckets.y.get() + i),
             dz = query[2] - S::load(buckets.z.get() + i);
  return S::least((dx * dx + dy * dy) + dz * dz, S::every(kInfinity<T>));
}

template <typename T>
struct TreeScratch {
  std::vector<Visit<T>> stack;
  std::vector<Candidate<T>> candidates;  // of room for a leaf more than are kept
};

template <int Bytes, typename T>
PAX_INLINE void knn_of_tree(const Buckets<T>& buckets, const T* query, int64_t k, TreeScratch<T>& scratch, T* squared,
                            int64_t* indices) {
  using S = Simd<Bytes, T>;
  const auto room = static_cast<int64_t>(scratch.candidates.size()) - Buckets<T>::kLeaf;
  Candidate<T>* candidates = scratch.candidates.data();
  int64_t found = 0;
  descend(buckets, query, kInfinity<T>, scratch.stack, [&](const auto& node, T& limit) {
    for (int64_t i = node.begin; i < node.end; i += S::kWidth) {
      const auto distance = distances<Bytes>(buckets, i, query);
      for (uint64_t near = S::bits(distance <= limit); near != 0; near &= near - 1) {
        const int lane = __builtin_ctzll(near);
        candidates[found++] = Candidate<T>(distance[lane], buckets.index[i + lane]);
      }
    }
    if (found > room || (limit == kInfinity<T> && found >= k)) {
      std::nth_element(candidates, candidates + k - 1, candidates + found);
      found = k;
      limit = candidates[k - 1].squared();
    }
  });
  write_first(candidates, found, k, squared, indices);
}

template <int Bytes, typename T>
PAX_INLINE void nearest_of_tree(const Buckets<T>& buckets, const T* query, std::vector<Visit<T>>& stack, T* squared,
                                int64_t* index) {
  using S = Simd<Bytes, T>;
  Candidate<T> first(kInfinity<T>, 0);
  descend(buckets, query, kInfinity<T>, stack, [&](const auto& node, T& limit) {
    for (int64_t i = node.begin; i < node.end; i += S::kWidth) {
      const auto distance = distances<Bytes>(buckets, i, query);
      uint64_t near = S::bits(distance <= limit);
      if (near == 0) continue;
      for (; near != 0; near &= near - 1) {
        const int lane = __builtin_ctzll(near);
        first = std::min(first, Candidate<T>(distance[lane], buckets.index[i + lane]));
      }
      limit = first.squared();
    }
  });
  *squared = first.squared();
  *index = first.index();
}

// The indices of all points in a ball, up to as many as there is room for; false if there are more.
template <int Bytes, typename T>
PAX_INLINE bool ball_of_tree(const Buckets<T>& buckets, const T* query, T limit, std::vector<Visit<T>>& stack,
                             std::vector<int64_t>& found, std::size_t room) {
  using S = Simd<Bytes, T>;
  found.clear();
  descend(buckets, query, limit, stack, [&](const auto& node, T& bound) {
    for (int64_t i = node.begin; i < node.end; i += S::kWidth) {
      for (uint64_t inside = S::bits(distances<Bytes>(buckets, i, query) < limit); inside != 0; inside &= inside - 1)
        found.push_back(buckets.index[i + __builtin_ctzll(inside)]);
    }
    if (found.size() > room) bound = -1;  // nothing is that near: the search ends
  });
  return found.size() <= room;
}

#define PAX_SEARCHES(T)                                                                                             \
  PAX_DISPATCH(void, knn_of_all,                                                                                    \
               (const Columns<T>& columns, const T* query, int64_t k, Scratch<T>& scratch, T* squared,              \
                int64_t* indices),                                                                                  \
               (columns, query, k, scratch, squared, indices), knn_of_all)                                          \
  PAX_DISPATCH(void, nearest_of_all, (const Columns<T>& columns, const T* query, T* squared, int64_t* index),       \
               (columns, query, squared, index), nearest_of_all)                                                    \
  PAX_DISPATCH(int64_t, ball_of_all,                                                                                \
               (const Columns<T>& columns, const T* query, T limit, int64_t samples, int64_t* found),               \
               (columns, query, limit, samples, found), ball_of_all)                                                \
  PAX_DISPATCH(void, knn_of_tree,                                                                                   \
               (const Buckets<T>& buckets, const T* query, int64_t k, TreeScratch<T>& scratch, T* squared,          \
                int64_t* indices),                                                                                  \
               (buckets, query, k, scratch, squared, indices), knn_of_tree)                                         \
  PAX_DISPATCH(void, nearest_of_tree,                                                                               \
               (const Buckets<T>& buckets, const T* query, std::vector<Visit<T>>& stack, T* squared,                \
                int64_t* index),                                                                                    \
               (buckets, query, stack, squared, index), nearest_of_tree)                                            \
  PAX_DISPATCH(bool, ball_of_tree,                                                                                  \
               (const Buckets<T>& buckets, const T* query, T limit, std::vector<Visit<T>>& stack,                   \
                std::vector<int64_t>& found, std::size_t room),                                                     \
               (buckets, query, limit, stack, found, room), ball_of_tree)
PAX_SEARCHES(float)
PAX_SEARCHES(double)
#undef PAX_SEARCHES

template <typename T>
T squared_radius(double radius) {
  return static_cast<T>(radius) * static_cast<T>(radius);
}

// Free places repeat the first index of the ball.
void fill_ball(int64_t* found, int64_t number, int64_t samples) {
  std::fill(found + number, found + samples, number > 0 ? found[0] : 0);
}

template <typename T>
class Exhaustive final : public Neighbours<T> {
 public:
  Exhaustive(const T* points, int64_t count, int64_t dims)
      : values_(static_cast<std::size_t>(padded(count) * dims), kInfinity<T>),
        columns_{values_.data(), count, padded(count), dims} {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < dims; ++d) values_[static_cast<std::size_t>(d * columns_.size + i)] = points[i * dims + d];
  }

  void knn(const T* query, int64_t queries, int64_t k, T* squared, int64_t* indices) const override {
    const auto size = static_cast<std::size_t>(columns_.size);
    const auto classes = static_cast<std::size_t>(std::min(columns_.size, padded(4 * k)));
    Scratch<T> scratch{std::vector<T>(size), std::vector<T>(classes), std::vector<Candidate<T>>(size)};
    for (int64_t q = 0; q < queries; ++q)
      knn_of_all(columns_, query + q * columns_.dims, k, scratch, squared + q * k, indices + q * k);
  }

  void nearest(const T* query, int64_t queries, T* squared, int64_t* indices) const override {
    for (int64_t q = 0; q < queries; ++q)
      nearest_of_all(columns_, query + q * columns_.dims, squared + q, indices + q);
  }

  void ball_query(const T* query, int64_t queries, double radius, int64_t samples, int64_t* indices,
                  int64_t* counts) const override {
    for (int64_t q = 0; q < queries; ++q) {
      int64_t* found = indices + q * samples;
      counts[q] = ball_of_all(columns_, query + q * columns_.dims, squared_radius<T>(radius), samples, found);
      fill_ball(found, counts[q], samples);
    }
  }

 private:
  std::vector<T> values_;
  Columns<T> columns_;
};

template <typename T>
class Tree final : public Neighbours<T> {
 public:
  Tree(const T* points, int64_t count, int threads) : points_(points), count_(count), buckets_(points, count, threads) {}

  void knn(const T* query, int64_t queries, int64_t k, T* squared, int64_t* indices) const override {
    TreeScratch<T> scratch;
    scratch.candidates.resize(static_cast<std::size_t>(2 * k + 2 * Buckets<T>::kLeaf));
    for (int64_t q = 0; q < queries; ++q)
      knn_of_tree(buckets_, query + 3 * q, k, scratch, squared + q * k, indices + q * k);
  }

  void nearest(const T* query, int64_t queries, T* squared, int64_t* indices) const override {
    std::vector<Visit<T>> stack;
    for (int64_t q = 0; q < queries; ++q) nearest_of_tree(buckets_, query + 3 * q, stack, squared + q, indices + q);
  }

  void ball_query(const T* query, int64_t queries, double radius, int64_t samples, int64_t* indices,
                  int64_t* counts) const override {
    const T limit = squared_radius<T>(radius);
    const auto room = static_cast<std::size_t>(16 * samples + 1024);
    std::vector<Visit<T>> stack;
    std::vector<int64_t> inside;
    for (int64_t q = 0; q < queries; ++q) {
      int64_t* found = indices + q * samples;
      int64_t number = 0;
      if (ball_of_tree(buckets_, query + 3 * q, limit, stack, inside, room)) {
        number = std::min(samples, static_cast<int64_t>(inside.size()));
        std::partial_sort_copy(inside.begin(), inside.end(), found, found + number);
      } else {  // a ball this full has its first points soon
        number = first_inside(query + 3 * q, limit, samples, found);
      }
      counts[q] = number;
      fill_ball(found, number, samples);
    }
  }

 private:
  int64_t first_inside(const T* query, T limit, int64_t samples, int64_t* found) const {
    int64_t number = 0;
    for (int64_t i = 0; i < count_ && number < samples; ++i) {
      const T dx = query[0] - points_[3 * i], dy = query[1] - points_[3 * i + 1], dz = query[2] - points_[3 * i + 2];
      if ((dx * dx + dy * dy) + dz * dz < limit) found[number++] = i;
    }
    return number;
  }

  const T* points_;
  int64_t count_;
  Buckets<T> buckets_;
};

}  // namespace

template <typename T>
std::unique_ptr<Neighbours<T>> Neighbours<T>::of(const T* points, int64_t count, int64_t dims, int64_t queries,
                                                 Task task, int threads) {
  // Where a tree, which takes some 30 ns a point to build, is faster than all distances: `python -m benchmarks ops`.
  const int64_t large = task == Task::knn ? 8192 : 4096;
  const bool fits = dims == 3 && count >= large && count < Buckets<T>::kNone && queries >= 512;
  if (fits && all_finite(points, 3 * count)) return std::make_unique<Tree<T>>(points, count, threads);
  return std::make_unique<Exhaustive<T>>(points, count, dims);
}

template class Neighbours<float>;
template class Neighbours<double>;

}  // namespace pax::cpu
