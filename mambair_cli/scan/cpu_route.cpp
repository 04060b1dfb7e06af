// The category of every pixel, drawn at random: argmax of logits plus Gumbel noise, which never exists in memory. The
// noise comes from a counter (Philox 4x32-10, Salmon et al. 2011), so that the same key gives the same numbers on every
// device and with any number of threads. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

typedef uint32_t vu __attribute__((vector_size(W * 4)));

#if defined(__AVX512F__) || defined(__AVX2__)
// Of each pair of lanes the low one, as the low half of 64 bits; what stands in the high half does not matter, so a
// product is what it is, and its high word one shift away.
#if defined(__AVX512F__)
inline vu product(vu a, uint32_t by) { return (vu)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi32(int(by))); }
inline vu high(vu a) { return (vu)_mm512_srli_epi64((__m512i)a, 32); }
inline vu join(vu even, vu odd) { return (vu)_mm512_mask_mov_epi32((__m512i)even, 0xAAAA, _mm512_slli_epi64((__m512i)odd, 32)); }
#else
inline vu product(vu a, uint32_t by) { return (vu)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32(int(by))); }
inline vu high(vu a) { return (vu)_mm256_srli_epi64((__m256i)a, 32); }
inline vu join(vu even, vu odd) { return (vu)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xAA); }
#endif

// Four random numbers for each lane's counter, in place.
inline void philox(vu c[4], uint32_t key0, uint32_t key1) {
  vu even[4], odd[4];
  for (int i = 0; i < 4; i++) even[i] = c[i], odd[i] = high(c[i]);
  const auto step = [&](vu* c) {
    const vu a = product(c[0], 0xD2511F53u), b = product(c[2], 0xCD9E8D57u);
    c[0] = high(b) ^ c[1] ^ key0;
    c[1] = b;
    c[2] = high(a) ^ c[3] ^ key1;
    c[3] = a;
  };
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    step(even);
    step(odd);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int i = 0; i < 4; i++) c[i] = join(even[i], odd[i]);
}
#else
inline void philox(vu c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    vu low0, high0, low1, high1;
    for (int i = 0; i < W; i++) {
      const uint64_t a = uint64_t(c[0][i]) * 0xD2511F53u, b = uint64_t(c[2][i]) * 0xCD9E8D57u;
      low0[i] = uint32_t(a), high0[i] = uint32_t(a >> 32);
      low1[i] = uint32_t(b), high1[i] = uint32_t(b >> 32);
    }
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}
#endif

// Gumbel(0, 1) from the upper 23 bits: u in (0, 1), never either end.
inline void gumbel(const vu random[4], vf (&u)[4]) {
  for (int i = 0; i < 4; i++) u[i] = (__builtin_convertvector(vi(random[i] >> 9), vf) + 0.5f) * 0x1p-23f;
  logs(u);
  for (vf& v : u) v = -v;
  logs(u);
  for (vf& v : u) v = -v;
}

// Among the lanes with the highest score the lowest winner.
inline int first_of_highest(vf score, vi winner) {
#if defined(__AVX512F__)
  const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps((__m512)score));
  return _mm512_mask_reduce_min_epi32(_mm512_cmp_ps_mask((__m512)score, highest, _CMP_EQ_OQ), (__m512i)winner);
#else
  float s[W];
  int32_t w[W];
  std::memcpy(s, &score, sizeof s);
  std::memcpy(w, &winner, sizeof w);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; i++) {
      const bool other = s[i + half] > s[i] || (s[i + half] == s[i] && w[i + half] < w[i]);
      s[i] = other ? s[i + half] : s[i];
      w[i] = other ? w[i + half] : w[i];
    }
  return w[0];
#endif
}

}  // namespace

void route(const Route& r, int64_t begin, int64_t end) {
  constexpr int ROWS = 8;  // at once: integers of all, then logarithms of all, or each would wait for its own
  const int quads = (r.tokens + 3) / 4;  // quad q of a row gives the noise of tokens q, q + quads, q + 2 quads, ...
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (; begin < end; begin += ROWS) {
    const int rows = end - begin < ROWS ? int(end - begin) : ROWS;
    vf best[ROWS];
    vi winner[ROWS] = {};
    for (vf& b : best) b = splat(-3e38f);
    for (int first = 0; first < quads; first += W) {
      vu random[ROWS][4];
      vf noise[ROWS][4];
      for (int row = 0; row < rows; row++) {
        vu c[4] = {vu(lane + first), vu{} + uint32_t(begin + row), vu{} + r.layer, vu{}};
        philox(c, uint32_t(r.key), uint32_t(r.key >> 32));
        for (int i = 0; i < 4; i++) random[row][i] = c[i];
      }
      for (int row = 0; row < rows; row++) gumbel(random[row], noise[row]);
      for (int row = 0; row < rows; row++)
        for (int i = 0; i < 4; i++) {
          const int token = i * quads + first;
          const int left = r.tokens - token < quads - first ? r.tokens - token : quads - first;
          if (left <= 0) continue;
          vf score = load(r.logits + (begin + row) * r.tokens + token, left) + noise[row][i];
          if (left < W) score = select(lane < left, score, splat(-3e38f));
          const vi better = score > best[row];
          best[row] = select(better, score, best[row]);
          winner[row] = (vi)select(better, (vf)(lane + token), (vf)winner[row]);
        }
    }
    for (int row = 0; row < rows; row++) r.category[begin + row] = first_of_highest(best[row], winner[row]);
  }
}

}  // namespace MAMBAIR_ISA
