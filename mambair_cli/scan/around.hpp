// What cpu.cpp opens to Python of the operations around the scan that have no backward: division of the work, nothing else.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "chosen.hpp"
#include "cpu_kernel.hpp"
#include "parallel.hpp"
#include "squeeze.hpp"
#include "tensor.hpp"

namespace around {

namespace nb = nanobind;

// x (rows, in), rows x_row apart; weight (out, in); add, scaled (rows, out); y (planes, rows, out / planes)
void linear(Strided x, int64_t x_row, Maybe norm_weight, Maybe norm_bias, float eps, Array weight, Maybe bias, bool gelu,
            Maybe add, Maybe scaled, Maybe scale, int planes, Array y, int threads) {
  const Kernels& kernel = *chosen;
  Linear l{};
  l.rows = int64_t(x.shape(0));
  l.in = int(weight.shape(1));
  l.out = int(weight.shape(0));
  l.x = (const float*)x.data();
  l.x_row = x_row;
  l.norm_weight = pointer<float>(norm_weight);
  l.norm_bias = pointer<float>(norm_bias);
  l.eps = eps;
  l.bias = pointer<float>(bias);
  l.gelu = gelu;
  l.add = pointer<float>(add);
  l.scaled = pointer<float>(scaled);
  l.scale = pointer<float>(scale);
  l.part = l.out / planes;
  l.y = (float*)y.data();
  nb::gil_scoped_release release;
  std::vector<float> packed(size_t(kernel.packed_size(l.in, l.out)));
  parallel::run(kernel.panels(l.out), int64_t(l.in) * l.out < 1 << 16 ? 1 : threads,
                [&](int panel) { kernel.pack((const float*)weight.data(), l.in, l.out, panel, packed.data()); });
  l.packed = packed.data();
  const int64_t band = 96;
  parallel::run(int((l.rows + band - 1) / band), threads,
                [&](int task) { kernel.linear(l, task * band, std::min((task + 1) * band, l.rows)); });
}

// qkv (batch, height, width, 3 * channels), table ((2 window - 1)^2, heads): the bias by the way from key to query
void attention(Array qkv, Array table, int window, int shift, float far, Array y, int threads) {
  const Kernels& kernel = *chosen;
  const int heads = int(table.shape(1)), width = int(y.shape(3)) / heads, places = int(table.shape(0));
  const float log2e = 1.44269504088896341f, *from = (const float*)table.data();
  const int batch = int(y.shape(0)), rows = int(y.shape(1)) / window, columns = int(y.shape(2)) / window;
  nb::gil_scoped_release release;
  const int64_t bias_head = places + kernel.width;
  std::vector<float> bias(size_t(heads * bias_head));
  for (int head = 0; head < heads; head++)
    for (int at = 0; at < places; at++) bias[size_t(head * bias_head + at)] = from[int64_t(at) * heads + head] * log2e;
  const Attention a{int(y.shape(1)), int(y.shape(2)), window, shift, heads, width, (const float*)qkv.data(), bias.data(),
                    bias_head, log2e / std::sqrt(float(width)), far * log2e, (float*)y.data()};
  // All heads of a window one after the other: they share the lines of the cache that its pixels lie in.
  parallel::run(batch * heads * rows * columns, threads, [&](int task) {
    const int head = task % heads, window_at = task / heads;
    kernel.attention(a, window_at / columns / rows, window_at / columns % rows, window_at % columns, head);
  });
}

// logits (rows, tokens) -> category (rows)
void route(Array logits, uint64_t key, uint32_t layer, Array category, int threads) {
  const Kernels& kernel = *chosen;
  const Route r{int(logits.shape(1)), (const float*)logits.data(), key, layer, (int32_t*)category.data()};
  const int64_t rows = int64_t(category.shape(0)), band = 64;
  nb::gil_scoped_release release;
  parallel::run(int((rows + band - 1) / band), threads,
                [&](int task) { kernel.route(r, task * band, std::min((task + 1) * band, rows)); });
}

// category (batch, length) -> visits: positions by category, those of one in order; step_of: where each is visited
void visit(Array category, int categories, Array visits, Array step_of, int threads) {
  const int64_t length = int64_t(category.shape(1));
  nb::gil_scoped_release release;
  parallel::run(int(category.shape(0)), threads, [&](int b) {
    const int32_t* of = (const int32_t*)category.data() + b * length;
    int32_t *at = (int32_t*)visits.data() + b * length, *step = (int32_t*)step_of.data() + b * length;
    std::vector<int32_t> next(size_t(categories) + 1);
    for (int64_t i = 0; i < length; i++) next[size_t(of[i]) + 1]++;
    for (int c = 0; c < categories; c++) next[size_t(c) + 1] += next[size_t(c)];
    for (int64_t i = 0; i < length; i++) {
      step[i] = next[size_t(of[i])]++;
      at[step[i]] = int32_t(i);
    }
  });
}

// x (batch, height, width, channels) whose pixels lie x_row apart, the partner's partner_row; taps (side * side, channels)
void filter(Strided x, int64_t x_row, int side, int dilation, Array taps, Array bias, int activation, std::optional<Strided> partner,
            int64_t partner_row, bool product, Array y, int threads) {
  const Kernels& kernel = *chosen;
  const Filter f{int(y.shape(0)), int(y.shape(1)), int(y.shape(2)), int(y.shape(3)), side, dilation, Activation(activation), product,
                 (const float*)x.data(), x_row, (const float*)taps.data(), (const float*)bias.data(),
                 partner ? (const float*)partner->data() : nullptr, partner_row, (float*)y.data()};
  const int band = 2, bands = (f.height + band - 1) / band;
  nb::gil_scoped_release release;
  parallel::run(f.batch * bands, threads, [&](int task) {
    const int begin = task % bands * band;
    kernel.filter(f, task / bands, begin, std::min(begin + band, f.height));
  });
}

// x, residual (batch, pixels, channels); shrink (hidden, channels), grow (channels, hidden)
void attend(Array x, Array shrink, Array shrink_bias, Array grow, Array grow_bias, Array residual, Array scale, Array y,
            int threads) {
  const auto at = [](const Array& a) { return (const float*)a.data(); };
  const Squeeze s{int(x.shape(2)), int(shrink.shape(0)), at(shrink), at(shrink_bias), at(grow), at(grow_bias)};
  const Weighed w{s.channels, at(x), at(residual), at(scale), (float*)y.data()};
  nb::gil_scoped_release release;
  squeeze(s, w, int(x.shape(0)), x.shape(1), threads);
}

}  // namespace around
