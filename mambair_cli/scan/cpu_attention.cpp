// Attention within the windows of a map, as one pass from queries, keys and values to the result. A vector holds
// queries of one head from one row of the window, so that maximum, exponential and sum run down the keys without ever
// crossing lanes, the width of a head, 12 in the light networks, does not matter, and the bias of a key is a stretch of
// the table of positions as it stands. Keys come in blocks whose logits stay in the first cache (the running maximum
// of Milakov & Gimelshein 2018). Compiled once per instruction set; see CMakeLists.txt.
#include <memory>
#include <vector>

#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

// What the registers hold: sums of KEYS x VECTORS logits, or of a few values x PAIR.
constexpr int VECTORS = W == 8 ? 2 : 4, KEYS = 4, PAIR = VECTORS / 2;
constexpr int PADDING = 4;  // head widths are padded to a multiple
constexpr int BLOCK = 64;   // keys
constexpr int QUERIES = VECTORS * W;

// One head of one window: keys and values packed, (keys, padded width).
struct Window {
  const Attention& a;
  int keys, width, padded, per_row;  // vectors in a row of queries
  int64_t channels;
  std::vector<int64_t> pixels;
  std::vector<int32_t> place, region;  // of keys: in the table of the bias; which corner of the map, if the roll divides
  bool divided = false;
  std::unique_ptr<float[]> packed;
  float *k, *v;

  explicit Window(const Attention& a)
      : a(a), keys(a.window * a.window), width(a.width), padded((a.width + PADDING - 1) / PADDING * PADDING),
        per_row((a.window + W - 1) / W), channels(int64_t(a.heads) * a.width), pixels(size_t(keys)), place(size_t(keys)),
        region(size_t(keys)), packed(new float[size_t(keys) * size_t(2 * padded)]) {
    k = packed.get();
    v = k + int64_t(keys) * padded;
  }

  void copy(const float* from, float* to) const {
    int d = 0;
    for (; d + 4 <= width; d += 4) std::memcpy(to + d, from + d, 16);
    for (; d < padded; d++) to[d] = d < width ? from[d] : 0.0f;
  }

  // Queries, keys and values of a pixel of the next row.
  void prefetch(const float* ahead) const {
    for (int part = -1; part <= 1; part++) {
      __builtin_prefetch(ahead + part * channels);
      __builtin_prefetch(ahead + part * channels + width - 1);
    }
  }

  void fetch(int b, int row, int column, int head) {
    for (int i = 0, at = 0; i < a.window; i++) {
      int y = row * a.window + i + a.shift, x = column * a.window + a.shift;
      const bool below = y >= a.image_height;
      if (below) y -= a.image_height;
      const int64_t line = (int64_t(b) * a.image_height + y) * a.image_width;
      for (int j = 0; j < a.window; j++, x++, at++) {
        const bool beside = x >= a.image_width;
        pixels[size_t(at)] = line + x - (beside ? a.image_width : 0);
        place[size_t(at)] = i * (2 * a.window - 1) + j;
        region[size_t(at)] = 2 * below + beside;
        divided = divided || below || beside;
        const float* from = a.qkv + pixels[size_t(at)] * 3 * channels + channels + head * width;
        if (i + 1 < a.window) prefetch(from + a.image_width * 3 * channels);
        copy(from, k + at * padded);
        copy(from + channels, v + at * padded);
      }
    }
  }
};

// Up to VECTORS vectors of queries against all keys of their window.
struct Group {
  const Window& w;
  const float* bias[VECTORS];  // of the first key; the others' lie before it
  int first[VECTORS], lanes[VECTORS];  // the query in the window that a vector begins with; how many follow
  vi region[VECTORS];
  vf highest[VECTORS], total[VECTORS];
  alignas(64) float q[MAX_HEAD][QUERIES], y[MAX_HEAD][QUERIES], logits[BLOCK * QUERIES];

  Group(const Window& w, int vector, int head) : w(w) {
    const int side = w.a.window, span = 2 * side - 1;
    const float* table = w.a.bias + int64_t(head) * w.a.bias_head;
    for (int i = 0; i < VECTORS; i++) {
      const int at = vector + i < side * w.per_row ? vector + i : vector;  // one too many does the first one's again
      const int row = at / w.per_row, column = at % w.per_row * W;
      first[i] = row * side + column;
      lanes[i] = side - column < W ? side - column : W;
      bias[i] = table + (row + side - 1) * span + column + side - 1;
      int32_t own[W];
      const float* from[W];
      for (int lane = 0; lane < W; lane++) {
        const size_t query = size_t(first[i] + (lane < lanes[i] ? lane : 0));
        own[lane] = w.region[query];
        from[lane] = w.a.qkv + w.pixels[query] * 3 * w.channels + head * w.width;
      }
      std::memcpy(&region[i], own, sizeof own);
      for (int d = 0; d < w.width; d += W) {  // behind the queries of a pixel lie its keys, which may be read as well
        const int64_t left = 3 * w.channels - head * w.width - d;
        vf rows[W];
#pragma GCC unroll 16
        for (int lane = 0; lane < W; lane++) rows[lane] = load(from[lane] + d, left < W ? int(left) : W) * w.a.scale;
        transpose(rows);
#pragma GCC unroll 16
        for (int e = 0; e < W; e++) store(q[d + e] + i * W, rows[e], W);
      }
      highest[i] = splat(-1e30f);
      total[i] = vf{};
    }
    for (int d = 0; d < (w.width + W - 1) / W * W; d++)
      for (int i = 0; i < VECTORS; i++) store(y[d] + i * W, vf{}, W);
  }

  // Logits of COUNT keys from j on, to base 2, and the highest of all so far.
  template <int COUNT>
  void dots(int j, float* out, vf* top) const {
    vf sums[COUNT][VECTORS];
#pragma GCC unroll 4
    for (int key = 0; key < COUNT; key++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) sums[key][i] = load(bias[i] - w.place[size_t(j + key)], W);
    const float* own = w.k + j * w.padded;
    for (int d = 0; d < w.width; d++) {
      vf values[VECTORS];
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) values[i] = load(q[d] + i * W, W);
#pragma GCC unroll 4
      for (int key = 0; key < COUNT; key++) {
        const vf number = splat(own[key * w.padded + d]);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) sums[key][i] += number * values[i];
      }
    }
    if (w.divided)
      for (int key = 0; key < COUNT; key++)
        for (int i = 0; i < VECTORS; i++)
          sums[key][i] += select(region[i] != w.region[size_t(j + key)], splat(w.a.far), vf{});
#pragma GCC unroll 4
    for (int key = 0; key < COUNT; key++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        top[i] = max(top[i], sums[key][i]);
        store(out + key * QUERIES + i * W, sums[key][i], W);
      }
  }

  // Values at d.. of the width, weighted by what stands in logits, for PAIR vectors from `from` on.
  template <int COUNT>
  void mix(int d, int from, int begin, int count, const vf* factor) {
    vf sums[COUNT][PAIR];
#pragma GCC unroll 12
    for (int e = 0; e < COUNT; e++)
#pragma GCC unroll 2
      for (int i = 0; i < PAIR; i++) sums[e][i] = load(y[d + e] + (from + i) * W, W) * factor[from + i];
    const float *value = w.v + begin * w.padded + d, *weight = logits + from * W;
    for (int j = 0; j < count; j++, value += w.padded, weight += QUERIES) {
      vf p[PAIR];
#pragma GCC unroll 2
      for (int i = 0; i < PAIR; i++) p[i] = load(weight + i * W, W);
#pragma GCC unroll 12
      for (int e = 0; e < COUNT; e++) {
        const vf number = splat(value[e]);
#pragma GCC unroll 2
        for (int i = 0; i < PAIR; i++) sums[e][i] += number * p[i];
      }
    }
#pragma GCC unroll 12
    for (int e = 0; e < COUNT; e++)
#pragma GCC unroll 2
      for (int i = 0; i < PAIR; i++) store(y[d + e] + (from + i) * W, sums[e][i], W);
  }

  void block(int begin, int count) {
    vf top[VECTORS], factor[VECTORS];
    for (int i = 0; i < VECTORS; i++) top[i] = highest[i];
    int j = 0;
    for (; j + KEYS <= count; j += KEYS) dots<KEYS>(begin + j, logits + j * QUERIES, top);
    for (; j < count; j++) dots<1>(begin + j, logits + j * QUERIES, top);
    vf sums[VECTORS] = {};
    for (j = 0; j < count; j++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        float* at = logits + j * QUERIES + i * W;
        const vf p = exp2_negative(load(at, W) - top[i]);
        sums[i] += p;
        store(at, p, W);
      }
    for (int i = 0; i < VECTORS; i++) {
      factor[i] = exp2_negative(highest[i] - top[i]);
      total[i] = total[i] * factor[i] + sums[i];
      highest[i] = top[i];
    }
    for (int from = 0; from < VECTORS; from += PAIR) {
      int d = 0;
      for (; d + 12 <= w.padded; d += 12) mix<12>(d, from, begin, count, factor);
      if (w.padded - d == 8) mix<8>(d, from, begin, count, factor);
      if (w.padded - d == 4) mix<4>(d, from, begin, count, factor);
    }
  }

  void write(int head) {
    for (int i = 0; i < VECTORS; i++) {
      const vf norm = 1.0f / total[i];
      for (int d = 0; d < w.width; d += W) {
        vf rows[W];
#pragma GCC unroll 16
        for (int e = 0; e < W; e++) rows[e] = load(y[d + e] + i * W, W) * norm;
        transpose(rows);
        for (int lane = 0; lane < lanes[i]; lane++)
          store(w.a.y + w.pixels[size_t(first[i] + lane)] * w.channels + head * w.width + d, rows[lane], w.width - d);
      }
    }
  }
};

}  // namespace

void attention(const Attention& a, int b, int row, int column, int head) {
  Window window(a);
  window.fetch(b, row, column, head);
  for (int vector = 0; vector < a.window * window.per_row; vector += VECTORS) {
    Group group(window, vector, head);
    for (int begin = 0; begin < window.keys; begin += BLOCK)
      group.block(begin, window.keys - begin < BLOCK ? window.keys - begin : BLOCK);
    group.write(head);
  }
}

}  // namespace MAMBAIR_ISA
