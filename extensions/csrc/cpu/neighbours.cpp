#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace pax::cpu {
namespace {

// The points of one cloud, coordinate by coordinate, each padded to whole blocks with points at infinity.
template <typename T>
class Columns {
 public:
  explicit Columns(const Search<T>& search)
      : search_(search),
        size_(padded(search.count)),
        values_(static_cast<std::size_t>(size_ * search.dims), std::numeric_limits<T>::infinity()) {}

  // The columns of cloud `batch`, transposed when it changes.
  const T* of(int64_t batch) {
    if (batch != batch_) {
      const T* points = search_.points + batch * search_.count * search_.dims;
      for (int64_t i = 0; i < search_.count; ++i)
        for (int64_t d = 0; d < search_.dims; ++d) values_[d * size_ + i] = points[i * search_.dims + d];
      batch_ = batch;
    }
    return values_.data();
  }
  int64_t size() const { return size_; }

 private:
  const Search<T>& search_;
  int64_t size_;
  std::vector<T> values_;
  int64_t batch_ = -1;
};

// Squared distances from a query to the kBlock points from `columns` on; returns the smallest one.
template <typename T>
PAX_INLINE T block_distances(const T* query, const T* columns, int64_t size, int64_t dims,
                             T* PAX_RESTRICT squared) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr int64_t kLanes = 16;
  if (dims == 3) {
    const T* PAX_RESTRICT x = columns;
    const T* PAX_RESTRICT y = columns + size;
    const T* PAX_RESTRICT z = columns + 2 * size;
    for (int64_t i = 0; i < kBlock; ++i) {
      const T dx = query[0] - x[i], dy = query[1] - y[i], dz = query[2] - z[i];
      const T sum = (dx * dx + dy * dy) + dz * dz;
      squared[i] = sum < kInfinity ? sum : kInfinity;
    }
  } else {
    for (int64_t i = 0; i < kBlock; ++i) squared[i] = 0;
    for (int64_t d = 0; d < dims; ++d) {
      const T* PAX_RESTRICT column = columns + d * size;
      for (int64_t i = 0; i < kBlock; ++i) {
        const T difference = query[d] - column[i];
        squared[i] += difference * difference;
      }
    }
    for (int64_t i = 0; i < kBlock; ++i) squared[i] = squared[i] < kInfinity ? squared[i] : kInfinity;
  }
  T lane[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lane[l] = squared[l];
  for (int64_t i = kLanes; i < kBlock; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = squared[i + l] < lane[l] ? squared[i + l] : lane[l];
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lane[l] = lane[l + width] < lane[l] ? lane[l + width] : lane[l];
  return lane[0];
}

PAX_CLONES float distances(const float* query, const float* columns, int64_t size, int64_t dims,
                           float* squared) {
  return block_distances(query, columns, size, dims, squared);
}
PAX_CLONES double distances(const double* query, const double* columns, int64_t size, int64_t dims,
                            double* squared) {
  return block_distances(query, columns, size, dims, squared);
}

template <typename T>
struct Neighbour {
  T squared;
  int64_t index;
  bool operator<(const Neighbour& other) const {
    return squared < other.squared || (squared == other.squared && index < other.index);
  }
};

// The k nearest of the points offered in index order, in ascending order of (distance, index).
template <typename T>
class Ranking {
 public:
  explicit Ranking(int64_t k) : k_(static_cast<std::size_t>(k)) { best_.reserve(k_ + 1); }

  void clear() { best_.clear(); }
  bool full() const { return best_.size() == k_; }
  T worst() const { return best_.back().squared; }
  const std::vector<Neighbour<T>>& best() const { return best_; }

  void offer(T squared, int64_t index) {
    const Neighbour<T> neighbour{squared, index};
    if (!full()) {
      best_.push_back(neighbour);
      if (full()) std::sort(best_.begin(), best_.end());
    } else if (squared < worst()) {  // at equal distance the earlier index stays
      best_.insert(std::upper_bound(best_.begin(), best_.end(), neighbour), neighbour);
      best_.pop_back();
    }
  }

 private:
  std::size_t k_;
  std::vector<Neighbour<T>> best_;
};

}  // namespace

template <typename T>
void knn(const Search<T>& search, int64_t k, int64_t begin, int64_t end, T* squared, int64_t* indices) {
  Columns<T> columns(search);
  Ranking<T> ranking(k);
  T block[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const T* cloud = columns.of(row / search.queries);
    const T* query = search.query + row * search.dims;
    ranking.clear();
    for (int64_t i = 0; i < search.count; i += kBlock) {
      const T smallest = distances(query, cloud + i, columns.size(), search.dims, block);
      if (ranking.full() && !(smallest < ranking.worst())) continue;
      const int64_t width = std::min(kBlock, search.count - i);
      for (int64_t j = 0; j < width; ++j) ranking.offer(block[j], i + j);
    }
    for (int64_t j = 0; j < k; ++j) {
      squared[row * k + j] = ranking.best()[static_cast<std::size_t>(j)].squared;
      indices[row * k + j] = ranking.best()[static_cast<std::size_t>(j)].index;
    }
  }
}

template <typename T>
void nearest(const Search<T>& search, int64_t begin, int64_t end, T* squared, int64_t* indices) {
  Columns<T> columns(search);
  T block[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const T* cloud = columns.of(row / search.queries);
    const T* query = search.query + row * search.dims;
    T best = std::numeric_limits<T>::infinity();
    int64_t best_index = 0;
    for (int64_t i = 0; i < search.count; i += kBlock) {
      const T smallest = distances(query, cloud + i, columns.size(), search.dims, block);
      if (!(smallest < best)) continue;
      best = smallest;
      best_index = i + (std::find(block, block + kBlock, smallest) - block);
    }
    squared[row] = best;
    indices[row] = best_index;
  }
}

template <typename T>
void ball_query(const Search<T>& search, double radius, int64_t samples, int64_t begin, int64_t end,
                int64_t* indices, int64_t* counts) {
  const T limit = static_cast<T>(radius) * static_cast<T>(radius);
  Columns<T> columns(search);
  T block[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const T* cloud = columns.of(row / search.queries);
    const T* query = search.query + row * search.dims;
    int64_t* found = indices + row * samples;
    int64_t number = 0;
    for (int64_t i = 0; i < search.count && number < samples; i += kBlock) {
      if (!(distances(query, cloud + i, columns.size(), search.dims, block) < limit)) continue;
      for (int64_t j = 0; j < kBlock && number < samples; ++j)
        if (block[j] < limit) found[number++] = i + j;
    }
    std::fill(found + number, found + samples, number > 0 ? found[0] : 0);
    counts[row] = number;
  }
}

#define PAX_INSTANTIATE(T)                                                                 \
  template void knn(const Search<T>&, int64_t, int64_t, int64_t, T*, int64_t*);            \
  template void nearest(const Search<T>&, int64_t, int64_t, T*, int64_t*);                 \
  template void ball_query(const Search<T>&, double, int64_t, int64_t, int64_t, int64_t*, int64_t*);
PAX_INSTANTIATE(float)
PAX_INSTANTIATE(double)
#undef PAX_INSTANTIATE

}  // namespace pax::cpu
