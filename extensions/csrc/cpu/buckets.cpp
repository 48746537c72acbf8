#include "buckets.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace pax::cpu {
namespace {

constexpr int64_t kPad = 16;
constexpr int64_t kTask = 16384;  // points below which a thread goes on alone

template <typename T>
struct Item {
  T at[3];
  typename Buckets<T>::Index index;
};

template <typename T>
struct Range {
  Item<T>*items, *scratch;
  int64_t count;
};

template <typename T>
using Node = typename Buckets<T>::Node;

template <typename T>
Node<T> bounds_of(const Range<T>& range) {
  Node<T> node{};
  for (int axis = 0; axis < 3; ++axis) node.low[axis] = node.high[axis] = range.items[0].at[axis];
  for (int64_t i = 1; i < range.count; ++i)
    for (int axis = 0; axis < 3; ++axis) {
      const T value = range.items[i].at[axis];
      node.low[axis] = value < node.low[axis] ? value : node.low[axis];
      node.high[axis] = value > node.high[axis] ? value : node.high[axis];
    }
  return node;
}

// About the median along an axis, of some points here and there: equal steps would fall on one column of a grid.
template <typename T>
T middle(const Range<T>& range, int axis) {
  constexpr int64_t kSamples = 63;
  T values[kSamples];
  const int64_t samples = std::min(kSamples, range.count);
  uint64_t place = 0;
  for (int64_t i = 0; i < samples; ++i) {
    place += 0x9e3779b97f4a7c15u;  // of which the high bits are spread evenly
    values[i] = range.items[(place >> 32) * static_cast<uint64_t>(range.count) >> 32].at[axis];
  }
  std::nth_element(values, values + samples / 2, values + samples);
  return values[samples / 2];
}

// Moves the points for which `left` holds to the front and returns their number. The order is kept.
template <typename T, typename Left>
int64_t partition(const Range<T>& range, const Left& left) {
  int64_t kept = 0, moved = 0;
  for (int64_t i = 0; i < range.count; ++i) {
    const Item<T> item = range.items[i];
    range.items[kept] = range.scratch[moved] = item;
    const bool stays = left(item);
    kept += stays;
    moved += !stays;
  }
  std::copy(range.scratch, range.scratch + moved, range.items + kept);
  return kept;
}

// Splits along the longest side, where there is one; the left part has from 1 to count - 1 points.
template <typename T>
int64_t split(const Range<T>& range, const Node<T>& node) {
  int axis = 0;
  for (int other = 1; other < 3; ++other)
    if (node.high[other] - node.low[other] > node.high[axis] - node.low[axis]) axis = other;
  if (!(node.high[axis] > node.low[axis])) return range.count / 2;  // all in one place
  const T pivot = middle(range, axis);
  if (pivot > node.low[axis]) return partition(range, [=](const Item<T>& item) { return item.at[axis] < pivot; });
  return partition(range, [=](const Item<T>& item) { return item.at[axis] <= pivot; });
}

// The nodes of a range, and the padded number of places of its leaves. `begin` of a leaf holds its first point and
// `end` its number of points.
template <typename T>
int64_t grow(const Range<T>& range, int64_t first, bool parallel, std::vector<Node<T>>& nodes) {
  const std::size_t self = nodes.size();
  nodes.push_back(bounds_of(range));
  if (range.count <= Buckets<T>::kLeaf) {
    nodes[self].begin = first;
    nodes[self].end = range.count;
    return (range.count + kPad - 1) / kPad * kPad;
  }
  const int64_t half = split(range, nodes[self]);
  const Range<T> left{range.items, range.scratch, half};
  const Range<T> right{range.items + half, range.scratch + half, range.count - half};
  int64_t places = 0;
  if (parallel && range.count > kTask) {
    std::vector<Node<T>> of_left, of_right;
    int64_t left_places = 0, right_places = 0;
#pragma omp task shared(of_left, left_places)
    left_places = grow(left, first, true, of_left);
    right_places = grow(right, first + half, true, of_right);
#pragma omp taskwait
    for (auto* part : {&of_left, &of_right}) {
      const auto offset = static_cast<int64_t>(nodes.size());
      if (part == &of_right) nodes[self].right = offset;
      for (Node<T>& node : *part)
        if (node.right != 0) node.right += offset;
      nodes.insert(nodes.end(), part->begin(), part->end());
    }
    places = left_places + right_places;
  } else {
    places = grow(left, first, false, nodes);
    nodes[self].right = static_cast<int64_t>(nodes.size());
    places += grow(right, first + half, false, nodes);
  }
  return places;
}

}  // namespace

template <typename T>
Buckets<T>::Buckets(const T* points, int64_t count, int threads) {
  const auto items = make_array<Item<T>>(count), scratch = make_array<Item<T>>(count);
  for (int64_t i = 0; i < count; ++i)
    items[i] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]}, static_cast<Index>(i)};
  nodes.reserve(static_cast<std::size_t>(count / (kLeaf / 4) + 1));
  const Range<T> all{items.get(), scratch.get(), count};
#pragma omp parallel num_threads(threads) if (threads > 1)
#pragma omp single
  places = grow(all, 0, threads > 1, nodes);
  x = make_array<T>(places);
  y = make_array<T>(places);
  z = make_array<T>(places);
  index = make_array<Index>(places);
  int64_t place = 0;
  for (Node& node : nodes) {
    if (node.right != 0) continue;
    const Item<T>* first = items.get() + node.begin;
    const int64_t number = node.end, end = place + (number + kPad - 1) / kPad * kPad;
    node.begin = place;
    node.end = end;
    for (int64_t i = 0; place < end; ++i, ++place) {
      constexpr T kInfinity = std::numeric_limits<T>::infinity();
      const Item<T> item = i < number ? first[i] : Item<T>{{kInfinity, kInfinity, kInfinity}, kNone};
      x[place] = item.at[0];
      y[place] = item.at[1];
      z[place] = item.at[2];
      index[place] = item.index;
    }
  }
}

template <typename T>
bool all_finite(const T* values, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= std::isfinite(values[i]);
  return finite;
}

template struct Buckets<float>;
template struct Buckets<double>;
template bool all_finite(const float*, int64_t);
template bool all_finite(const double*, int64_t);

}  // namespace pax::cpu
