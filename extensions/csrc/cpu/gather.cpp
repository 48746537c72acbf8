#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels.h"

namespace pax::cpu {

int64_t gather_points(const char* points, const int64_t* indices, int64_t count, int64_t queries,
                      int64_t row_bytes, int64_t begin, int64_t end, char* out) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t index = indices[row];
    if (index < 0 || index >= count) return row;
    const char* source = points + ((row / queries) * count + index) * row_bytes;
    std::memcpy(out + row * row_bytes, source, static_cast<std::size_t>(row_bytes));
  }
  return -1;
}

template <typename T>
int64_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
                    int64_t channels, int64_t k, int64_t begin, int64_t end, T* out) {
  for (int64_t row = begin; row < end; ++row) {
    T* total = out + row * channels;
    std::fill(total, total + channels, T(0));
    for (int64_t neighbour = row * k; neighbour < (row + 1) * k; ++neighbour) {
      const int64_t index = indices[neighbour];
      if (index < 0 || index >= count) return row;
      const T* source = points + ((row / queries) * count + index) * channels;
      const T weight = weights[neighbour];
      for (int64_t c = 0; c < channels; ++c) total[c] += source[c] * weight;
    }
  }
  return -1;
}

template int64_t interpolate(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, int64_t,
                             int64_t, int64_t, float*);
template int64_t interpolate(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t, int64_t,
                             int64_t, int64_t, double*);

}  // namespace pax::cpu
