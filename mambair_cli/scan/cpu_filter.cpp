// Depthwise convolutions of 3x3, 5x5 and 7x7 with what follows them: an activation, then the product or the sum with
// another map. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

constexpr int PIXELS = W == 8 ? 4 : 8;  // neighbours in a row that share what is loaded

inline vf finish(const Filter& f, vf t, const float* partner, int lanes) {
  switch (f.activation) {
    case Activation::silu: t = silu(t); break;
    case Activation::sigmoid: t = sigmoid(t); break;
    case Activation::gelu: t = gelu(t); break;
    case Activation::none: break;
  }
  if (f.partner) {
    const vf other = load(partner, lanes);
    t = f.product ? t * other : t + other;
  }
  return t;
}

// Pixels j.. of row i, one vector of channels: those of the window that lie outside the map are 0. Whether all lie
// inside its columns is known beforehand (INSIDE), and of channels whether a vector is full (FULL).
template <int SIDE, int STEP, bool INSIDE, bool FULL>
void filter_pixels(const Filter& f, int b, int i, int j, int c) {
  constexpr int REACH = SIDE / 2, SPAN = PIXELS + STEP * (SIDE - 1);
  const int64_t plane = int64_t(f.height) * f.width, line = b * plane + int64_t(i) * f.width + j;
  const int lanes = FULL ? W : f.channels - c, count = INSIDE || f.width - j > PIXELS ? PIXELS : f.width - j;
  const vf bias = load(f.bias + c, lanes);
  vf sums[PIXELS];
#pragma GCC unroll 8
  for (int p = 0; p < PIXELS; p++) sums[p] = bias;
  if (const int ahead = i + STEP * REACH + 1; ahead < f.height) {  // the row that the next one will need beyond these
    const float* x = f.x + (b * plane + int64_t(ahead) * f.width + j) * f.x_row + c;
    for (int p = 0; p < count; p++) __builtin_prefetch(x + p * f.x_row);
  }
  for (int r = 0; r < SIDE; r++) {
    const int row = i + STEP * (r - REACH);
    if (row < 0 || row >= f.height) continue;
    const float* x = f.x + (b * plane + int64_t(row) * f.width + j - STEP * REACH) * f.x_row + c;
    vf near[SPAN];
#pragma GCC unroll 32
    for (int t = 0; t < SPAN; t++)
      near[t] = INSIDE || (j + t >= STEP * REACH && j + t - STEP * REACH < f.width) ? load(x + t * f.x_row, lanes) : vf{};
#pragma GCC unroll 7
    for (int t = 0; t < SIDE; t++) {
      const vf weight = load(f.weight + int64_t(r * SIDE + t) * f.channels + c, lanes);
#pragma GCC unroll 8
      for (int p = 0; p < PIXELS; p++) sums[p] += weight * near[p + STEP * t];
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < PIXELS; p++)
    if (INSIDE || p < count)
      store(f.y + (line + p) * f.channels + c, finish(f, sums[p], f.partner + (line + p) * f.partner_row + c, lanes), lanes);
}

template <int SIDE, int STEP>
void filter_row(const Filter& f, int b, int i) {
  constexpr int REACH = STEP * (SIDE / 2);
  for (int j = 0; j < f.width; j += PIXELS) {
    const bool inside = j >= REACH && j + PIXELS + REACH <= f.width;
    int c = 0;
    for (; c + W <= f.channels; c += W)
      (inside ? filter_pixels<SIDE, STEP, true, true> : filter_pixels<SIDE, STEP, false, true>)(f, b, i, j, c);
    if (c < f.channels)
      (inside ? filter_pixels<SIDE, STEP, true, false> : filter_pixels<SIDE, STEP, false, false>)(f, b, i, j, c);
  }
}

}  // namespace

void filter(const Filter& f, int b, int begin, int end) {
  const auto row = f.side == 7 ? filter_row<7, 1> : f.side == 5 ? filter_row<5, 1> : f.dilation == 2 ? filter_row<3, 2> : filter_row<3, 1>;
  for (int i = begin; i < end; i++) row(f, b, i);
}

}  // namespace MAMBAIR_ISA
