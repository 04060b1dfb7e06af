// What the kernels are asked to do. One struct serves both public ops; strides are in elements.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int MAX_STATES = 64, MAX_RANK = 64;  // that a scan may have
constexpr int MAX_HEAD = 64;                   // width of a head of attention

enum class Dtype { float32, bfloat16 };

// Sequence k of image b visits `steps` positions l = orders[b, k, t] of `length`; -1 is a pad, a null table the
// identity. Of position l it reads u[b, k, l, :channels] and the row proj[b, k, l] = [dt low-rank | B | C].
struct Scan {
  int batch, directions, length, steps, channels, states, rank;
  Dtype dtype;                     // of u, delta and proj; everything else is float32
  const void *u, *delta, *proj;    // delta (laid out like u) replaces dt_weight @ low-rank; rank is 0 then
  int64_t u_batch, u_direction, u_row;
  int64_t proj_batch, proj_direction, proj_row;
  const float *dt_weight, *dt_bias, *A, *D;  // (K, channels, rank), (K, channels), (K, channels, states), (K, channels)
  const int32_t* orders;
  int64_t orders_batch, orders_direction;
  bool softplus;
};

// Steps that are prepared at once, and steps between states that the forward keeps for the backward to start from: what
// the backward writes between two of these has to fit a core's first cache.
constexpr int CHUNK = 32, KEPT = 16;
static_assert(CHUNK % KEPT == 0);

// Where results go: y rows of one direction are added to what is there, or replace it.
struct Output {
  bool fresh;
  float* y;
  int64_t y_batch, y_direction, y_row;
  float* kept;  // states before every KEPT steps, (batch, direction, block, piece, states, width), or null
};

inline float* kept_states(float* kept, const Scan& s, int width, int b, int k, int first, int step) {
  const int64_t blocks = (s.channels + width - 1) / width, pieces = (s.steps + KEPT - 1) / KEPT;
  return kept + (((int64_t(b) * s.directions + k) * blocks + first / width) * pieces + step / KEPT) * s.states * width;
}

// Steps [from, to) of a sequence; `from` is a multiple of CHUNK.
struct Stretch {
  int from, to;
  float* state;  // (blocks, states, width) that it begins with; without `end` the last one is left there. Null: no y
  float* end;    // (blocks, states, width): the last state, had the first been zero; or null
  float* time;   // (blocks, width): the sum of the time steps, with `end`
};

// float32, zeroed by the caller, laid out like what they are the gradients of; added to.
struct Gradients {
  const float* y;
  int64_t y_batch, y_direction, y_row;
  float* kept;  // from the forward
  float *u, *delta, *proj;
  float *dt_weight, *dt_bias, *A, *D;
};

// y = depthwise 3x3 convolution + bias, or silu of that; channel last: x (batch, height, width, row stride x_row), y dense.
struct Depthwise {
  int batch, height, width, channels, dilation;
  bool silu;
  Dtype dtype;
  const void* x;
  int64_t x_row;
  const float *weight, *bias;  // (9, channels), (channels)
  void* y;
};

struct DepthwiseBackward {
  Depthwise forward;    // y is not used
  const void* gy;       // dense, like y
  float *g, *gx;        // dense: gradient before the SiLU (scratch, if there is one), of x
  float* g_parameters;  // (batch, 10, channels): nine taps and the bias
};

// out = layer_norm(y) * silu(z) over rows of `channels`; without z the norm alone
struct NormGate {
  int64_t rows;
  int channels;
  Dtype dtype;
  const void* y;
  int64_t y_row;
  const void* z;
  int64_t z_row;
  const float *weight, *bias;
  float eps;
  void* out;
};

struct NormGateBackward {
  NormGate forward;  // out is not used
  const void* g_out;
  void *gy, *gz;  // dense, in the dtype of y
};

// y = f(norm(x) W^T + bias) + add + scale * scaled; f is GELU or nothing. Inference only, float32.
struct Linear {
  int64_t rows;
  int in, out;
  const float* x;
  int64_t x_row;
  const float *norm_weight, *norm_bias;  // of a LayerNorm of the rows of x, or null
  float eps;
  const float *packed, *bias;  // weight by `pack`; bias (out) or null
  bool gelu;
  const float *add, *scaled, *scale;  // (rows, out), (rows, out), (out), each or null
  int part;                           // outputs of a plane: all of them, or fewer
  float* y;                           // (out / part, rows, part)
};

// Softmax(q k^T scale + bias) v in windows of a map that is first rolled by `shift`, and rolled back.
struct Attention {
  int image_height, image_width, window, shift, heads, width;
  const float* qkv;   // (batch, height, width, 3, heads, width)
  const float* bias;  // (heads, bias_head) to base 2, by the way from key to query; padded, for vectors are read whole
  int64_t bias_head;
  float scale, far;  // to base 2; `far` is added between pixels that only the roll brought together
  float* y;           // (batch, height, width, heads, width)
};

struct Route {
  int tokens;
  const float* logits;  // (rows, tokens)
  uint64_t key;
  uint32_t layer;
  int32_t* category;  // (rows)
};

enum class Activation { none, silu, sigmoid, gelu };

// y = activation(depthwise convolution + bias), times or plus a partner. Inference only, float32.
struct Filter {
  int batch, height, width, channels, side, dilation;  // dilation 1, or 2 of side 3
  Activation activation;
  bool product;
  const float* x;
  int64_t x_row;
  const float *weight, *bias;  // (side * side, channels), (channels)
  const float* partner;        // or null
  int64_t partner_row;
  float* y;
};

// y = scale * residual + factor * x, of rows of channels; scale and factors (channels)
struct Weighed {
  int channels;
  const float *x, *residual, *scale;
  float* y;
};

struct Kernels {
  const char* name;
  int width;  // channels per vector
  // blocks [begin, end) of `width` channels of one sequence
  void (*scan_forward)(const Scan&, const Output&, int batch, int direction, int begin, int end, const Stretch&);
  void (*scan_carry)(const Scan&, int direction, int begin, int end, const Stretch&, float* state);  // over a stretch
  void (*scan_backward)(const Scan&, const Gradients&, int batch, int direction, int begin, int end);
  void (*depthwise)(const Depthwise&, int batch, int row_begin, int row_end);
  void (*depthwise_backward)(const DepthwiseBackward&, int batch, int first);
  void (*norm_gate)(const NormGate&, int64_t row_begin, int64_t row_end);
  // adds to g_parameters (2, channels): weight and bias
  void (*norm_gate_backward)(const NormGateBackward&, int64_t row_begin, int64_t row_end, float* g_parameters);
  int64_t (*packed_size)(int in, int out);
  int (*panels)(int out);
  void (*pack)(const float* weight, int in, int out, int panel, float* packed);
  void (*linear)(const Linear&, int64_t row_begin, int64_t row_end);
  void (*attention)(const Attention&, int batch, int row, int column, int head);
  void (*route)(const Route&, int64_t row_begin, int64_t row_end);
  void (*filter)(const Filter&, int batch, int row_begin, int row_end);
  void (*sum_rows)(const float* x, int64_t rows, int channels, float* sums);
  void (*weigh)(const Weighed&, const float* factor, int64_t row_begin, int64_t row_end);
  float (*multiply_adds)(int64_t rounds);
};

namespace portable { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
