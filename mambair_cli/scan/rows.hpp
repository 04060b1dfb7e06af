// What is done to rows of channels.
#pragma once
#include "simd.hpp"

namespace MAMBAIR_ISA {

// Mean and 1 / standard deviation of a row.
struct Moments {
  float mean, scale;

  template <class T>
  vf normal(const T* at, int lanes) const {
    return (load(at, lanes) - mean) * scale;
  }
};

// Calls visit(channel, lanes) for each vector of a row: where lanes are W, the compiler knows it.
template <class Visit>
inline void each_vector(int channels, Visit visit) {
  int c = 0;
  for (; c + W <= channels; c += W) visit(c, W);
  if (const int lanes = channels - c; lanes > 0) {
    if (lanes >= W) __builtin_unreachable();
    visit(c, lanes);
  }
}

// Those of W rows at once or fewer, `step` apart (biased variance, two passes): what one row makes wait for the sum of
// its lanes, the root and the division is shared, and each row gets what it would get alone.
template <class T>
void find_moments(const T* rows, int64_t step, int count, int channels, float eps, Moments* out) {
  const vf share = splat(1.0f / float(channels));
  float mean[W], scale[W];
  vf totals[W];
  for (int i = 0; i < W; i++) {  // row by row, as they lie in memory
    totals[i] = vf{};
    const T* row = rows + (i < count ? i : 0) * step;
    each_vector(channels, [&](int c, int lanes) { totals[i] += load(row + c, lanes); });
  }
  store(mean, sums(totals) * share, W);
  for (int i = 0; i < W; i++) {
    totals[i] = vf{};
    const T* row = rows + (i < count ? i : 0) * step;
    each_vector(channels, [&](int c, int lanes) {
      const vf v = keep(load(row + c, lanes) - mean[i], lanes);
      totals[i] += v * v;
    });
  }
  store(scale, sums(totals) * share + eps, W);
  for (int i = 0; i < W; i++) scale[i] = 1.0f / __builtin_sqrtf(scale[i]);
  for (int i = 0; i < count; i++) out[i] = {mean[i], scale[i]};
}

// `count` rows to dense rows of LayerNorm.
inline void normalise(const float* rows, int64_t step, int64_t count, int channels, float eps, const float* weight,
                      const float* bias, float* out) {
  Moments moments[W];
  for (int64_t begin = 0; begin < count; begin += W, rows += W * step, out += W * channels) {
    const int some = count - begin < W ? int(count - begin) : W;
    for (int64_t ahead = W * step; ahead < 2 * W * step; ahead += 64 / sizeof(float)) __builtin_prefetch(rows + ahead);
    find_moments(rows, step, some, channels, eps, moments);
    for (int i = 0; i < some; i++)
      each_vector(channels, [&](int c, int lanes) {
        const vf normal = moments[i].normal(rows + i * step + c, lanes);
        store(out + i * channels + c, normal * load(weight + c, lanes) + load(bias + c, lanes), lanes);
      });
  }
}

}  // namespace MAMBAIR_ISA
