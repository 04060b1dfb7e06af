// Attention within the windows of a map, as one pass from queries, keys and values to the result. A vector holds as
// many queries of one head, so that maximum, exponential and sum run down the keys without ever crossing lanes, and the
// width of a head, 12 in the light networks, does not matter. Compiled once per instruction set; see CMakeLists.txt.
#include <vector>

#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

// Vectors of queries and keys at once, as the registers allow: every broadcast serves all the vectors.
constexpr int VECTORS = W == 16 ? 2 : 1, KEYS = 8 / VECTORS;
constexpr int PADDING = 4;            // head widths are padded to a multiple
constexpr int QUERIES = VECTORS * W;

// One head of one window: keys and values packed, (keys, padded width).
struct Window {
  const Attention& a;
  int keys, width, padded;
  int64_t channels;
  std::vector<int64_t> pixels;
  std::vector<int32_t> region;  // of a window that the roll put together from up to four corners of the map
  bool divided = false;
  std::vector<float> packed;
  float *k, *v, *logits;  // logits (keys, QUERIES)

  explicit Window(const Attention& a)
      : a(a), keys(a.window * a.window), width(a.width), padded((a.width + PADDING - 1) / PADDING * PADDING),
        channels(int64_t(a.heads) * a.width), pixels(size_t(keys)), region(size_t(keys) + QUERIES),
        packed(size_t(keys) * size_t(2 * padded + QUERIES)) {
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
  void mix(int first, const vf* norm, float (*rows)[QUERIES]) const {
    vf sums[COUNT][VECTORS] = {};
    const float *value = v + first, *weight = logits;
    for (int j = 0; j < keys; j++, value += padded, weight += QUERIES) {
      vf p[VECTORS];
      for (int i = 0; i < VECTORS; i++) p[i] = load(weight + i * W, W);
      for (int d = 0; d < COUNT; d++)
        for (int i = 0; i < VECTORS; i++) sums[d][i] += value[d] * p[i];
    }
    for (int d = 0; d < COUNT; d++)
      for (int i = 0; i < VECTORS; i++) store(rows[first + d] + i * W, sums[d][i] * norm[i], W);
  }

  template <int COUNT>
  void dots(const float (*q)[QUERIES], const float* bias, int j, int query, vf* highest) const {
    vf sums[COUNT][VECTORS];
    for (int i = 0; i < VECTORS; i++) {
      const int lanes = keys - query - i * W;
      for (int key = 0; key < COUNT; key++)
        sums[key][i] = lanes > 0 ? load(bias + int64_t(j + key) * keys + query + i * W, lanes) : vf{};
      if (!divided) continue;
      vi own;
      std::memcpy(&own, &region[size_t(query + i * W)], sizeof own);
      for (int key = 0; key < COUNT; key++)
        sums[key][i] += select(own != region[size_t(j + key)], splat(a.far), vf{});
    }
    const float* own = k + j * padded;
    for (int d = 0; d < width; d++) {
      vf values[VECTORS];
      for (int i = 0; i < VECTORS; i++) values[i] = load(q[d] + i * W, W);
      for (int key = 0; key < COUNT; key++)
        for (int i = 0; i < VECTORS; i++) sums[key][i] += own[key * padded + d] * values[i];
    }
    for (int key = 0; key < COUNT; key++)
      for (int i = 0; i < VECTORS; i++) {
        highest[i] = max(highest[i], sums[key][i]);
        store(logits + (j + key) * QUERIES + i * W, sums[key][i], W);
      }
  }

  // Logits to weights, to base 2; then their sums stand in `highest`.
  void weigh(vf* highest) const {
    vf totals[2][VECTORS] = {};
    for (int j = 0; j < keys; j++)
      for (int i = 0; i < VECTORS; i++) {
        float* at = logits + j * QUERIES + i * W;
        const vf p = exp2_negative(load(at, W) - highest[i]);
        totals[j & 1][i] += p;
        store(at, p, W);
      }
    for (int i = 0; i < VECTORS; i++) highest[i] = totals[0][i] + totals[1][i];
  }

  void attend(int query, int head, const float* bias) const {
    const int count = keys - query < QUERIES ? keys - query : QUERIES;
    float rows[MAX_HEAD][QUERIES] = {};  // of queries, then of results: through memory, since lanes of a vector are dear
    for (int i = 0; i < count; i++) {
      const float* from = a.qkv + pixels[size_t(query + i)] * 3 * channels + head * width;
      for (int d = 0; d < width; d++) rows[d][i] = from[d] * a.scale;
    }
    vf highest[VECTORS];
    for (vf& h : highest) h = splat(-1e30f);
    int j = 0;
    for (; j + KEYS <= keys; j += KEYS) dots<KEYS>(rows, bias, j, query, highest);
    for (; j < keys; j++) dots<1>(rows, bias, j, query, highest);
    weigh(highest);
    for (vf& h : highest) h = 1.0f / h;
    int first = 0;
    for (; first + 12 <= padded; first += 12) mix<12>(first, highest, rows);
    if (padded - first == 8) mix<8>(first, highest, rows);
    if (padded - first == 4) mix<4>(first, highest, rows);
    for (int i = 0; i < count; i++) {
      float* to = a.y + pixels[size_t(query + i)] * channels + head * width;
      for (int d = 0; d < width; d++) to[d] = rows[d][i];
    }
  }
};

}  // namespace

void attention(const Attention& a, int b, int row, int column, int head) {
  Window window(a);
  window.fetch(b, row, column, head);
  const float* bias = a.bias + int64_t(head) * window.keys * window.keys;
  for (int query = 0; query < window.keys; query += QUERIES) window.attend(query, head, bias);
}

}  // namespace MAMBAIR_ISA
