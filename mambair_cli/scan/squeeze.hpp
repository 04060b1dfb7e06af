// Channel attention (squeeze-and-excitation) and the residual that follows it.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "chosen.hpp"
#include "cpu_kernel.hpp"
#include "parallel.hpp"

// What a squeeze of each picture's means says: sigmoid(grow relu(shrink mean + bias) + bias), a factor for each channel.
struct Squeeze {
  int channels, hidden;
  const float *shrink, *shrink_bias, *grow, *grow_bias;  // (hidden, channels), (hidden), (channels, hidden), (channels)

  static float product(const float* a, const float* b, int count, float sum) {
    for (int i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
  }

  void operator()(const float* mean, float* factor) const {
    std::vector<float> kept(size_t(hidden), 0.0f);
    for (int i = 0; i < hidden; i++)
      kept[size_t(i)] = std::max(0.0f, product(shrink + int64_t(i) * channels, mean, channels, shrink_bias[i]));
    for (int i = 0; i < channels; i++)
      factor[i] = 1.0f / (1.0f + std::exp(-product(grow + int64_t(i) * hidden, kept.data(), hidden, grow_bias[i])));
  }
};

// The sums are made band by band, which does not depend on the threads.
inline void squeeze(const Squeeze& s, const Weighed& w, int batch, int64_t pixels, int threads) {
  const Kernels& kernel = *chosen;
  const int64_t band = 256, bands = (pixels + band - 1) / band;
  const size_t channels = size_t(s.channels);
  std::vector<float> sums(size_t(batch * bands) * channels), factors(size_t(batch) * channels);
  const auto rows = [&](int task) { return std::min(band, pixels - task % bands * band); };
  const auto first = [&](int task) { return task / bands * pixels + task % bands * band; };
  parallel::run(int(batch * bands), threads, [&](int task) {
    kernel.sum_rows(w.x + first(task) * s.channels, rows(task), s.channels, &sums[size_t(task) * channels]);
  });
  for (int b = 0; b < batch; b++) {
    std::vector<float> mean(channels, 0.0f);
    for (int64_t i = 0; i < bands; i++)
      for (size_t c = 0; c < channels; c++) mean[c] += sums[size_t(b * bands + i) * channels + c];
    for (float& m : mean) m /= float(pixels);
    s(mean.data(), &factors[size_t(b) * channels]);
  }
  parallel::run(int(batch * bands), threads, [&](int task) {
    kernel.weigh(w, &factors[size_t(task / bands) * channels], first(task), first(task) + rows(task));
  });
}
