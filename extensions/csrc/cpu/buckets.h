// The points of one cloud in small buckets of neighbours: the leaves of a k-d tree.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace pax::cpu {

// Memory that is not initialised: pages of large arrays are touched by the thread that fills them.
template <typename T>
using Array = std::unique_ptr<T[]>;
template <typename T>
Array<T> make_array(int64_t size) {
  return Array<T>(new T[static_cast<std::size_t>(size)]);
}

template <typename T>
struct Buckets {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr int64_t kLeaf = 64;  // points of a leaf, at most
  static constexpr Index kNone = std::numeric_limits<Index>::max();

  struct Node {
    T low[3], high[3];  // of its points
    int64_t begin, end;  // places of a leaf; multiples of 16
    int64_t right;  // the node of the right half; the left one follows its parent. 0 for a leaf
  };

  // Places are grouped by leaf, each leaf padded to a multiple of 16 with points at infinity of index kNone.
  int64_t places = 0;
  Array<T> x, y, z;
  Array<Index> index;
  std::vector<Node> nodes;  // depth first, the root at 0

  // points: (count, 3), all finite; count below 2^31.
  Buckets(const T* points, int64_t count, int threads);
};

// Whether all values are finite, as Buckets needs it.
template <typename T>
bool all_finite(const T* values, int64_t count);

}  // namespace pax::cpu
