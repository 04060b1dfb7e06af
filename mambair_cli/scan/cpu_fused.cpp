// What stands around the scan in every block, one pass over memory each: depthwise 3x3, SiLU of it,
// and LayerNorm * SiLU(gate). Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "rows.hpp"

namespace MAMBAIR_ISA {
namespace {

// d silu(t) / dt = s (1 + t (1 - s)), s the sigmoid of t
inline vf silu_slope(vf t, vf s) { return s * (1.0f + t * (1.0f - s)); }

// Slides a window of three columns along row i of one block of channels, so that a pixel is loaded three times
// instead of nine, and calls visit(j, taps) with taps[3 * row + column]. Dilated, every dilation-th pixel by itself.
template <class T, class Visit>
void slide(const T* x, int64_t x_row, const Depthwise& d, int i, int lanes, Visit visit) {
  vf taps[9];
  auto fetch = [&](int column, int j) {
    for (int r = 0; r < 3; r++) {
      const int row = i + (r - 1) * d.dilation;
      const bool inside = row >= 0 && row < d.height && j < d.width;
      taps[3 * r + column] = inside ? load(x + (int64_t(row) * d.width + j) * x_row, lanes) : vf{};
    }
  };
  for (int start = 0; start < d.dilation && start < d.width; start++) {
    for (int r = 0; r < 3; r++) taps[3 * r] = vf{};
    fetch(1, start);
    for (int j = start; j < d.width; j += d.dilation) {
      fetch(2, j + d.dilation);
      visit(j, taps);
      for (int r = 0; r < 3; r++) taps[3 * r] = taps[3 * r + 1], taps[3 * r + 1] = taps[3 * r + 2];
    }
  }
}

struct Filter {
  int lanes;
  vf weight[9], bias;

  Filter(const Depthwise& d, int first) : lanes(d.channels - first) {
    for (int t = 0; t < 9; t++) weight[t] = load(d.weight + t * d.channels + first, lanes);
    bias = load(d.bias + first, lanes);
  }

  vf operator()(const vf* taps) const {
    vf total = bias;
    for (int t = 0; t < 9; t++) total += weight[t] * taps[t];
    return total;
  }
};

template <class T>
void depthwise_rows(const Depthwise& d, int b, int begin, int end) {
  const T* x = (const T*)d.x + int64_t(b) * d.height * d.width * d.x_row;
  T* y = (T*)d.y + int64_t(b) * d.height * d.width * d.channels;
  for (int i = begin; i < end; i++)
    for (int c = 0; c < d.channels; c += W) {
      const Filter filter(d, c);
      T* out = y + int64_t(i) * d.width * d.channels + c;
      const T* ahead = i + d.dilation + 1 < d.height ? x + c + int64_t(i + d.dilation + 1) * d.width * d.x_row : nullptr;
      slide(x + c, d.x_row, d, i, filter.lanes, [&](int j, const vf* taps) {
        if (ahead) __builtin_prefetch(ahead + int64_t(j) * d.x_row);
        __builtin_prefetch(out + int64_t(d.width + j) * d.channels, 1);
        const vf t = filter(taps);
        store(out + int64_t(j) * d.channels, d.silu ? silu(t) : t, filter.lanes);
      });
    }
}

template <class T>
void depthwise_gradient(const DepthwiseBackward& g, int b, int first) {
  const Depthwise& d = g.forward;
  const int64_t plane = int64_t(d.height) * d.width;
  const Filter filter(d, first);
  const T* x = (const T*)d.x + b * plane * d.x_row + first;
  const T* gy = (const T*)g.gy + b * plane * d.channels + first;
  float *before = d.silu ? g.g + b * plane * d.channels + first : nullptr;
  float *gx = g.gx + b * plane * d.channels + first;
  vf parameters[10] = {};
  for (int i = 0; i < d.height; i++)
    slide(x, d.x_row, d, i, filter.lanes, [&](int j, const vf* taps) {
      const int64_t at = (int64_t(i) * d.width + j) * d.channels;
      vf slope = load(gy + at, filter.lanes);
      if (d.silu) {
        const vf t = filter(taps);
        slope *= silu_slope(t, sigmoid(t));
        store(before + at, slope, filter.lanes);
      }
      for (int k = 0; k < 9; k++) parameters[k] += slope * taps[k];
      parameters[9] += slope;
    });
  for (int i = 0; i < d.height; i++) {
    const auto spread = [&](int j, const vf* taps) {
      vf total{};
      for (int k = 0; k < 9; k++) total += filter.weight[8 - k] * taps[k];
      store(gx + (int64_t(i) * d.width + j) * d.channels, total, filter.lanes);
    };
    if (d.silu)
      slide(before, d.channels, d, i, filter.lanes, spread);
    else
      slide(gy, d.channels, d, i, filter.lanes, spread);
  }
  float* out = g.g_parameters + int64_t(b) * 10 * d.channels + first;
  for (int k = 0; k < 10; k++) store(out + k * d.channels, parameters[k], filter.lanes);
}

template <class T>
void norm_gate_rows(const NormGate& g, int64_t begin, int64_t end) {
  Moments moments[W];
  for (; begin < end; begin += W) {
    const int count = end - begin < W ? int(end - begin) : W;
    const T *y = (const T*)g.y + begin * g.y_row, *z = g.z ? (const T*)g.z + begin * g.z_row : nullptr;
    T* out = (T*)g.out + begin * g.channels;
    for (int i = 0; i < count; i++)  // under way while the moments are worked out: the gates, and the rows after these
      for (int c = 0; c < g.channels; c += int(64 / sizeof(T))) {
        if (z) __builtin_prefetch(z + i * g.z_row + c);
        if (begin + W + i < end) __builtin_prefetch(y + (W + i) * g.y_row + c);
      }
    find_moments(y, g.y_row, count, g.channels, g.eps, moments);
    for (int i = 0; i < count; i++)
      each_vector(g.channels, [&](int c, int lanes) {
        const vf scaled = moments[i].normal(y + i * g.y_row + c, lanes) * load(g.weight + c, lanes);
        const vf normal = scaled + load(g.bias + c, lanes);
        store(out + i * g.channels + c, z ? normal * silu(load(z + i * g.z_row + c, lanes)) : normal, lanes);
      });
  }
}

template <class T>
void norm_gate_gradient(const NormGateBackward& b, int64_t begin, int64_t end, float* g_parameters) {
  const NormGate& g = b.forward;
  float *g_weight = g_parameters, *g_bias = g_parameters + g.channels;
  Moments several[W];
  for (int64_t row = begin; row < end; row++) {
    const T *y = (const T*)g.y + row * g.y_row, *z = g.z ? (const T*)g.z + row * g.z_row : nullptr;
    const T* g_out = (const T*)b.g_out + row * g.channels;
    T *gy = (T*)b.gy + row * g.channels, *gz = z ? (T*)b.gz + row * g.channels : nullptr;
    const int at = int((row - begin) % W);
    if (!at) find_moments(y, g.y_row, end - row < W ? int(end - row) : W, g.channels, g.eps, several);
    const Moments moments = several[at];
    vf sum_g{}, sum_gx{};  // of the gradient that reaches the normalised row, and of its product with the row
    for (int c = 0; c < g.channels; c += W) {
      const int lanes = g.channels - c;
      const vf x = keep(moments.normal(y + c, lanes), lanes), weight = load(g.weight + c, lanes);
      vf d = load(g_out + c, lanes);
      if (z) {
        const vf t = load(z + c, lanes), s = sigmoid(t);
        store(gz + c, d * (x * weight + load(g.bias + c, lanes)) * silu_slope(t, s), lanes);
        d *= t * s;
      }
      store(g_weight + c, load(g_weight + c, lanes) + d * x, lanes);
      store(g_bias + c, load(g_bias + c, lanes) + d, lanes);
      d *= weight;
      sum_g += d;
      sum_gx += d * x;
    }
    const float mean_g = sum(sum_g) / float(g.channels), mean_gx = sum(sum_gx) / float(g.channels);
    for (int c = 0; c < g.channels; c += W) {
      const int lanes = g.channels - c;
      const vf x = moments.normal(y + c, lanes);
      vf d = load(g_out + c, lanes);
      if (z) d *= silu(load(z + c, lanes));
      store(gy + c, (d * load(g.weight + c, lanes) - mean_g - x * mean_gx) * moments.scale, lanes);
    }
  }
}

}  // namespace

void depthwise(const Depthwise& d, int b, int begin, int end) {
  (d.dtype == Dtype::float32 ? depthwise_rows<float> : depthwise_rows<bf16>)(d, b, begin, end);
}

void depthwise_backward(const DepthwiseBackward& d, int b, int first) {
  (d.forward.dtype == Dtype::float32 ? depthwise_gradient<float> : depthwise_gradient<bf16>)(d, b, first);
}

void norm_gate(const NormGate& g, int64_t begin, int64_t end) {
  (g.dtype == Dtype::float32 ? norm_gate_rows<float> : norm_gate_rows<bf16>)(g, begin, end);
}

void norm_gate_backward(const NormGateBackward& g, int64_t begin, int64_t end, float* g_parameters) {
  (g.forward.dtype == Dtype::float32 ? norm_gate_gradient<float> : norm_gate_gradient<bf16>)(g, begin, end,
                                                                                              g_parameters);
}

}  // namespace MAMBAIR_ISA
