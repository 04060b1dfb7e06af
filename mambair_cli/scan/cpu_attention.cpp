// Attention within the windows of a map, as one pass from queries, keys and values to the result. A vector holds as
// many queries of one head, so that maximum, exponential and sum run down the keys without ever crossing lanes, and the
// width of a head, 12 in the light networks, does not matter. Compiled once per instruction set; see CMakeLists.txt.
#include <vector>

#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

constexpr int KEYS = 8;      // keys at once for the logits
constexpr int PADDING = 4;   // head widths are padded to a multiple

// One head of one window: keys and values packed, (keys, padded width).
struct Window {
  const Attention& a;
  int keys, width, padded;
  int64_t channels;
  std::vector<int64_t> pixels;
  std::vector<int32_t> region;  // of a window that the roll put together from up to four corners of the map
  bool divided = false;
  std::vector<float> packed;
  float *k, *v, *logits;  // logits (keys, W)

  explicit Window(const Attention& a)
      : a(a), keys(a.window * a.window), width(a.width), padded((a.width + PADDING - 1) / PADDING * PADDING),
        channels(int64_t(a.heads) * a.width), pixels(size_t(keys)), region(size_t(keys) + W),
        packed(size_t(keys) * size_t(2 * padded + W) + size_t(padded) * W) {
    k = packed.data();
    v = k + int64_t(keys) * padded;
    logits = v + int64_t(keys) * padded;
  }

  void fetch(int b, int row, int column, int head) {
    for (int i = 0; i < a.window; i++)
      for (int j = 0; j < a.window; j++) {
        const int y = row * a.window + i + a.shift, x = column * a.window + j + a.shift;
        const bool below = y >= a.image_height, beside = x >= a.image_width;
        pixels[size_t(i * a.window + j)] =
            (int64_t(b) * a.image_height + y % a.image_height) * a.image_width + x % a.image_width;
        region[size_t(i * a.window + j)] = 2 * below + beside;
        divided = divided || below || beside;
      }
    for (int i = 0; i < keys; i++) {
      const float* from = a.qkv + pixels[size_t(i)] * 3 * channels + channels + head * width;
      for (int d = 0; d < width; d++) {
        k[i * padded + d] = from[d];
        v[i * padded + d] = from[channels + d];
      }
    }
  }

  // Values at `first`.. of the width, weighted by what stands in logits.
  template <int COUNT>
  void mix(int first, int query, int lanes, vf norm, int head) {
    vf sums[COUNT] = {};
    for (int j = 0; j < keys; j++) {
      const vf p = load(logits + j * W, W);
      const float* value = v + j * padded + first;
      for (int d = 0; d < COUNT; d++) sums[d] += value[d] * p;
    }
    for (int d = 0; d < COUNT && first + d < width; d++) {
      const vf y = sums[d] * norm;
      for (int lane = 0; lane < lanes; lane++)
        a.y[pixels[size_t(query + lane)] * channels + head * width + first + d] = y[lane];
    }
  }

  template <int COUNT>
  vf dots(const vf* q, const float* bias, int j, int query, int lanes, vf highest) {
    vf sums[COUNT];
    for (int i = 0; i < COUNT; i++) sums[i] = load(bias + int64_t(j + i) * keys, lanes);
    if (divided) {
      vi own;
      std::memcpy(&own, &region[size_t(query)], sizeof own);
      for (int i = 0; i < COUNT; i++) sums[i] += select(own != region[size_t(j + i)], splat(a.far), vf{});
    }
    for (int d = 0; d < width; d++)
      for (int i = 0; i < COUNT; i++) sums[i] += k[(j + i) * padded + d] * q[d];
    for (int i = 0; i < COUNT; i++) {
      highest = max(highest, sums[i]);
      store(logits + (j + i) * W, sums[i], W);
    }
    return highest;
  }

  void attend(int query, int head, const float* bias) {
    const int lanes = keys - query < W ? keys - query : W;
    vf q[MAX_HEAD];
    for (int d = 0; d < width; d++) {
      vf values{};
      for (int lane = 0; lane < lanes; lane++)
        values[lane] = a.qkv[pixels[size_t(query + lane)] * 3 * channels + head * width + d];
      q[d] = values * a.scale;
    }
    vf highest = splat(-1e30f);
    int j = 0;
    for (; j + KEYS <= keys; j += KEYS) highest = dots<KEYS>(q, bias + query, j, query, lanes, highest);
    for (; j < keys; j++) highest = dots<1>(q, bias + query, j, query, lanes, highest);
    vf total{};
    for (j = 0; j < keys; j++) {
      const vf p = exp2_negative(load(logits + j * W, W) - highest);
      total += p;
      store(logits + j * W, p, W);
    }
    const vf norm = 1.0f / total;
    int first = 0;
    for (; first + 12 <= padded; first += 12) mix<12>(first, query, lanes, norm, head);
    if (padded - first == 8) mix<8>(first, query, lanes, norm, head);
    if (padded - first == 4) mix<4>(first, query, lanes, norm, head);
  }
};

}  // namespace

void attention(const Attention& a, int b, int row, int column, int head) {
  Window window(a);
  window.fetch(b, row, column, head);
  const float* bias = a.bias + int64_t(head) * window.keys * window.keys;
  for (int query = 0; query < window.keys; query += W) window.attend(query, head, bias);
}

}  // namespace MAMBAIR_ISA
