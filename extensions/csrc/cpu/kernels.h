// The CPU kernels. Plain pointers to contiguous data and no torch headers, so that they compile in seconds.
//
// Numerics of the point operations, shared with the CUDA kernels and pointadapterx/ops/reference.py, which agree bit for bit:
// a squared distance is ((dx*dx + dy*dy) + dz*dz), coordinates left to right, in the type of the input and
// without fused multiply-add (-ffp-contract=off); NaN counts as infinite; ties go to the lowest index.
#pragma once

#include <cstdint>
#include <memory>

namespace pax::cpu {

// One cloud: points (count, 3) -> chosen (samples), by as many threads as are worth it.
template <typename T>
void farthest_point_sample(const T* points, int64_t count, int64_t samples, int64_t start, bool skip_origin,
                           int threads, int64_t* chosen);

enum class Task { knn, nearest, ball_query };

// The points of one cloud, (count, dims), made ready by some threads for a task with about so many queries. The points
// must outlive it. Searches, for queries (queries, dims), may run at the same time.
template <typename T>
class Neighbours {
 public:
  virtual ~Neighbours() = default;
  static std::unique_ptr<Neighbours> of(const T* points, int64_t count, int64_t dims, int64_t queries, Task task,
                                        int threads);

  // squared and indices: (queries, k), nearest first.
  virtual void knn(const T* query, int64_t queries, int64_t k, T* squared, int64_t* indices) const = 0;
  // squared and indices: (queries).
  virtual void nearest(const T* query, int64_t queries, T* squared, int64_t* indices) const = 0;
  // indices: (queries, samples); counts: (queries).
  virtual void ball_query(const T* query, int64_t queries, double radius, int64_t samples, int64_t* indices,
                          int64_t* counts) const = 0;
};

// Rows [begin, end) of the flattened (batch * queries). Each returns the first row with an index outside
// [0, count), where it stops, or -1.
// points (batch, count, row_bytes) -> out (batch, queries, row_bytes), of any element type.
int64_t gather_points(const char* points, const int64_t* indices, int64_t count, int64_t queries,
                      int64_t row_bytes, int64_t begin, int64_t end, char* out);

// points (batch, count, channels), indices and weights (batch, queries, k) -> out (batch, queries, channels).
template <typename T>
int64_t interpolate(const T* points, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
                    int64_t channels, int64_t k, int64_t begin, int64_t end, T* out);

// The transpose, for one cloud and channels [begin, end): values (queries, channels) -> added to out (count, channels).
// Returns as above.
template <typename T>
int64_t spread(const T* values, const int64_t* indices, const T* weights, int64_t count, int64_t queries,
               int64_t channels, int64_t k, int64_t begin, int64_t end, T* out);

// The experts of a low-rank mixture, see pointadapterx/peft/parts/low_rank_mixture.py: x -> inner -> rank -> GELU ->
// inner. `width`, `rank` and the strides are the true ones filled up to a multiple of kLanes, with zeros. What is
// `across` is transposed: rows of one value of its input for all of its outputs.
struct Experts {
  int64_t number, width, inner, rank;
  int64_t number_stride, inner_stride;
  const float* router_across;    // (true width, number_stride)
  const float* down_in_across;   // (number, true width, inner_stride)
  const float* down_out;         // (number, inner, rank)
  const float* down_out_across;  // (number, rank, inner_stride)
  const float* bias;             // (number, rank)
  const float* up_in;            // (number, inner, rank)
  const float* up_in_across;     // (number, rank, inner_stride)
};

// What backward adds to: router (number, width), down_in (number, inner, width), down_out and up_in (number, inner,
// rank), bias (number, rank).
struct ExpertGradients {
  float *router, *down_in, *down_out, *bias, *up_in;
};

struct BFloat16 {
  std::uint16_t bits;
};

// Sends each of tokens (rows, width) to its best expert -> gates (rows, number), chosen (rows), inner (rows, inner) and
// codes (rows, number, inner + 1): in the place of the chosen expert, its output and 1, both times its gate; codes are
// zero before. `width` is the tokens' own, without the padding.
template <typename T>
void thin_experts(const Experts& experts, const T* tokens, int64_t rows, int64_t width, float* gates, int64_t* chosen,
                  float* inner, float* codes);
template <typename T>
void thin_experts_backward(const Experts& experts, const T* tokens, int64_t rows, int64_t width, const float* gates,
                           const int64_t* chosen, const float* inner, const float* codes_gradient,
                           const float* gates_gradient, const ExpertGradients& gradients);

// The experts of a mixture of bottlenecks, see pointadapterx/peft/parts/fused_bottlenecks.py: a first layer to `rank`
// values and, where `hidden` is rank + 1, the sub-token's scale; GELU or ReLU; a last layer, its bias the last row.
// `width` is a multiple of kLanes; strides are rank, hidden, number or rank + 1, filled up to such multiples.
struct Bottlenecks {
  int64_t number, width, rank, hidden;
  int64_t number_stride, hidden_stride, up_stride;
  bool gelu, normalized;  // normalized: the chosen gate counts as 1, and its gradient as that of its logarithm
  float eps;              // of the norm in front of the first layer, below 0 where there is none
  float dropout;          // rate of dropout behind the activation; what is dropped follows from seed and place
  int64_t seed;
  const float* router;         // (number, width)
  const float* router_across;  // (width, number_stride)
  const float* down;           // (number, hidden, width)
  const float* down_across;    // (number, width, hidden_stride)
  const float* bias;           // (number, hidden_stride)
  const float* up;             // (number, rank + 1, width)
  const float* up_across;      // (number, width, up_stride)
};

// What backward adds to: router (number, width), down (number, hidden, width), bias (number, hidden), up (number,
// rank + 1, width); and what it writes, tokens (rows, width), or null.
struct BottleneckGradients {
  float *router, *down, *bias, *up, *tokens;
};

// Sends each of tokens (rows, width) to its best expert -> gates (rows, number), chosen (rows), hidden (rows, hidden) of
// the first layer, and out (rows, width). The first of the tokens has the place `place_of_first` in the batch.
void bottlenecks(const Bottlenecks& experts, const float* tokens, int64_t place_of_first, int64_t rows, float* gates,
                 int64_t* chosen, float* hidden, float* out);
void bottlenecks_backward(const Bottlenecks& experts, const float* tokens, int64_t place_of_first, int64_t rows,
                          const float* gates, const int64_t* chosen, const float* hidden, const float* gradient,
                          const float* gates_gradient, const BottleneckGradients& gradients);

}  // namespace pax::cpu
