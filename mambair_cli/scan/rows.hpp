// What is done to one row of channels.
#pragma once
#include "simd.hpp"

namespace MAMBAIR_ISA {

// Mean and 1 / standard deviation of a row (biased variance, two passes).
struct Moments {
  float mean, scale;

  template <class T>
  Moments(const T* row, int channels, float eps) {
    vf total{}, squares{};
    for (int c = 0; c < channels; c += W) total += load(row + c, channels - c);
    mean = sum(total) / float(channels);
    for (int c = 0; c < channels; c += W) {
      const vf v = keep(load(row + c, channels - c) - mean, channels - c);
      squares += v * v;
    }
    scale = 1.0f / __builtin_sqrtf(sum(squares) / float(channels) + eps);
  }

  template <class T>
  vf normal(const T* at, int lanes) const {
    return (load(at, lanes) - mean) * scale;
  }
};

inline void normalise(const float* row, int channels, float eps, const float* weight, const float* bias, float* out) {
  const Moments moments(row, channels, eps);
  for (int c = 0; c < channels; c += W) {
    const int lanes = channels - c;
    store(out + c, moments.normal(row + c, lanes) * load(weight + c, lanes) + load(bias + c, lanes), lanes);
  }
}

}  // namespace MAMBAIR_ISA
