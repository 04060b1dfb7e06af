// Depthwise convolutions of 3x3, 5x5 and 7x7 with what follows them: an activation, then the product or the sum with
// another map. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

constexpr int PIXELS = 4;  // neighbours in a row that share what is loaded

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

template <int SIDE>
void filter_row(const Filter& f, int b, int i) {
  constexpr int REACH = SIDE / 2, SPAN = PIXELS + SIDE - 1;
  const int64_t plane = int64_t(f.height) * f.width, line = b * plane + int64_t(i) * f.width;
  for (int c = 0; c < f.channels; c += W) {
    const int lanes = f.channels - c;
    const vf bias = load(f.bias + c, lanes);
    for (int j = 0; j < f.width; j += PIXELS) {
      vf sums[PIXELS] = {bias, bias, bias, bias};
      for (int r = 0; r < SIDE; r++) {
        const int row = i + r - REACH;
        if (row < 0 || row >= f.height) continue;
        const float* x = f.x + (b * plane + int64_t(row) * f.width + j - REACH) * f.x_row + c;
        vf near[SPAN];
        for (int t = 0; t < SPAN; t++)
          near[t] = j + t >= REACH && j + t - REACH < f.width ? load(x + t * f.x_row, lanes) : vf{};
        for (int t = 0; t < SIDE; t++) {
          const vf weight = load(f.weight + int64_t(r * SIDE + t) * f.channels + c, lanes);
          for (int p = 0; p < PIXELS; p++) sums[p] += weight * near[p + t];
        }
      }
      for (int p = 0; p < PIXELS && j + p < f.width; p++) {
        const int64_t at = line + j + p;
        store(f.y + at * f.channels + c, finish(f, sums[p], f.partner + at * f.partner_row + c, lanes), lanes);
      }
    }
  }
}

}  // namespace

void filter(const Filter& f, int b, int begin, int end) {
  for (int i = begin; i < end; i++) switch (f.side) {
      case 3: filter_row<3>(f, b, i); break;
      case 5: filter_row<5>(f, b, i); break;
      default: filter_row<7>(f, b, i); break;
    }
}

}  // namespace MAMBAIR_ISA
