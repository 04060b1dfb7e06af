// y = f(norm(x) W^T + bias) + what is added, in one pass over the rows: the matrix products between the scans.
// Rows are few hundred values wide, so a block of them and a panel of W stay in the first caches and nothing is ever
// written that the next operation would only read back. Compiled once per instruction set; see CMakeLists.txt.
#include <memory>

#include "cpu_kernel.hpp"
#include "rows.hpp"

namespace MAMBAIR_ISA {
namespace {

// A panel is PANEL vectors of outputs or fewer; ROWS x PANEL sums, the panel's vectors and one broadcast fit the registers.
constexpr int ROWS = 6, PANEL = W == 16 ? 4 : 2;
constexpr int AHEAD = 2 * ROWS;  // rows that are fetched before their turn: the tiles read six rows at once, hard to foresee
constexpr int NORMAL = 48;       // normalised rows at a time, so that they stay in the first cache

// Vectors of outputs, cut as evenly as it goes: five are 3 + 2, not 4 + 1.
struct Panels {
  int vectors, count;

  explicit Panels(int out) : vectors((out + W - 1) / W), count((vectors + PANEL - 1) / PANEL) {}
  int begin(int p) const { return p * vectors / count; }
  int width(int p) const { return begin(p + 1) - begin(p); }
};

[[gnu::noinline]] void gelu_all(vf* v, int count) {
  for (int i = 0; i < count; i++) v[i] = gelu(v[i]);
}

// All loops over the sums are unrolled, or they would go through memory before and after the products.
template <int WIDTH, int HEIGHT>
void tile(const Linear& l, const float* x, int64_t x_row, int64_t row, int first) {
  const float* w = l.packed + int64_t(first) * W * l.in;
  const int column = first * W;
  vf sums[HEIGHT][WIDTH];
#pragma GCC unroll 4
  for (int j = 0; j < WIDTH; j++) {
    const vf bias = l.bias ? load(l.bias + column + j * W, l.out - column - j * W) : vf{};
#pragma GCC unroll 6
    for (int i = 0; i < HEIGHT; i++) sums[i][j] = bias;
  }
  for (int k = 0; k < l.in; k++, w += WIDTH * W) {
    vf panel[WIDTH];
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; j++) panel[j] = load(w + j * W, W);
#pragma GCC unroll 6
    for (int i = 0; i < HEIGHT; i++) {
      const vf value = splat(x[i * x_row + k]);
#pragma GCC unroll 4
      for (int j = 0; j < WIDTH; j++) sums[i][j] += value * panel[j];
    }
  }
  if (l.gelu) {
    vf all[HEIGHT * WIDTH];
#pragma GCC unroll 24
    for (int i = 0; i < HEIGHT * WIDTH; i++) all[i] = sums[i / WIDTH][i % WIDTH];
    gelu_all(all, HEIGHT * WIDTH);
#pragma GCC unroll 24
    for (int i = 0; i < HEIGHT * WIDTH; i++) sums[i / WIDTH][i % WIDTH] = all[i];
  }
#pragma GCC unroll 4
  for (int j = 0; j < WIDTH; j++) {
    const int at = column + j * W, lanes = l.out - at;
    const int plane = l.part == l.out ? 0 : at / l.part, offset = at - plane * l.part, fit = l.part - offset;
    float* y = l.y + (plane * l.rows + row) * l.part + offset;
    const vf scale = l.scale ? load(l.scale + at, lanes) : vf{};
#pragma GCC unroll 6
    for (int i = 0; i < HEIGHT; i++) {
      const int64_t place = (row + i) * l.out + at;
      vf v = sums[i][j];
      if (l.add) v += load(l.add + place, lanes);
      if (l.scaled) v += scale * load(l.scaled + place, lanes);
      store(y + i * l.part, v, fit);
      for (int from = fit, next = 1; from < lanes && from < W; from += l.part, next++) {  // lanes of the planes after it
        const int to = from + l.part < W ? from + l.part : W;
        store_some(y + i * l.part + next * (l.rows - 1) * l.part, v, from, to < lanes ? to : lanes);
      }
    }
  }
}

template <int WIDTH>
void panel(const Linear& l, const float* x, int64_t x_row, int64_t row, int64_t count, int first) {
  int64_t i = 0;
  for (; i + ROWS <= count; i += ROWS) {
    if (!first && !l.norm_weight)
      for (int64_t ahead = AHEAD * x_row; ahead < (AHEAD + ROWS) * x_row; ahead += 64 / sizeof(float))
        __builtin_prefetch(x + i * x_row + ahead);
    tile<WIDTH, ROWS>(l, x + i * x_row, x_row, row + i, first);
  }
  for (; i < count; i++) tile<WIDTH, 1>(l, x + i * x_row, x_row, row + i, first);
}

}  // namespace

int64_t packed_size(int in, int out) { return int64_t(Panels(out).vectors) * W * in; }

int panels(int out) { return Panels(out).count; }

// weight (out, in) -> panel after panel, (in, width * W) each, zeros beyond `out`; here one of them
void pack(const float* weight, int in, int out, int panel, float* packed) {
  const Panels panels(out);
  const int begin = panels.begin(panel) * W, end = panels.begin(panel + 1) * W;
  packed += int64_t(begin) * in;
  for (int k = 0; k < in; k++)
    for (int o = begin; o < end; o++) *packed++ = o < out ? weight[int64_t(o) * in + k] : 0.0f;
}

void linear(const Linear& l, int64_t begin, int64_t end) {
  const Panels panels(l.out);
  const int64_t most = l.norm_weight ? NORMAL : end - begin;
  std::unique_ptr<float[]> normal(l.norm_weight ? new float[size_t(most * l.in)] : nullptr);
  for (; begin < end; begin += most) {
    const int64_t count = end - begin < most ? end - begin : most, x_row = normal ? l.in : l.x_row;
    const float* x = l.x + begin * l.x_row;
    if (normal) {
      normalise(x, l.x_row, count, l.in, l.eps, l.norm_weight, l.norm_bias, normal.get());
      x = normal.get();
    }
    for (int p = 0; p < panels.count; p++) {
      const int first = panels.begin(p);
      switch (panels.width(p)) {
        case 1: panel<1>(l, x, x_row, begin, count, first); break;
        case 2: panel<2>(l, x, x_row, begin, count, first); break;
        case 3: panel<3>(l, x, x_row, begin, count, first); break;
        default: panel<4>(l, x, x_row, begin, count, first); break;
      }
    }
  }
}

}  // namespace MAMBAIR_ISA
