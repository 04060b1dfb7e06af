// The category of every pixel, drawn at random: argmax of logits plus Gumbel noise, which never exists in memory. The
// noise comes from a counter (Philox 4x32-10, Salmon et al. 2011), so that the same key gives the same numbers on every
// device and with any number of threads. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

typedef uint32_t vu __attribute__((vector_size(W * 4)));

// Low and high half of the 64-bit products.
inline void multiply(vu a, uint32_t by, vu& low, vu& high) {
#if defined(__AVX512F__)
  const __m512i m = _mm512_set1_epi32(int(by)), v = (__m512i)a;
  const __m512i even = _mm512_mul_epu32(v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
  low = (vu)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
  high = (vu)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
#elif defined(__AVX2__)
  const __m256i m = _mm256_set1_epi32(int(by)), v = (__m256i)a;
  const __m256i even = _mm256_mul_epu32(v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
  low = (vu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  high = (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
  for (int i = 0; i < W; i++) {
    const uint64_t product = uint64_t(a[i]) * by;
    low[i] = uint32_t(product);
    high[i] = uint32_t(product >> 32);
  }
#endif
}

// Four random numbers for each lane's counter, in place.
inline void philox(vu c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    vu low0, high0, low1, high1;
    multiply(c[0], 0xD2511F53u, low0, high0);
    multiply(c[2], 0xCD9E8D57u, low1, high1);
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Gumbel(0, 1) from the upper 23 bits: u in (0, 1), never either end.
inline vf gumbel(vu random) {
  const vf u = (__builtin_convertvector(vi(random >> 9), vf) + 0.5f) * 0x1p-23f;
  return -log(-log(u));
}

// Among the lanes with the highest score the lowest winner.
inline int first_of_highest(vf score, vi winner) {
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
}

}  // namespace

void route(const Route& r, int64_t begin, int64_t end) {
  const int quads = (r.tokens + 3) / 4;  // quad q of a row gives the noise of tokens q, q + quads, q + 2 quads, ...
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  for (int64_t row = begin; row < end; row++) {
    const float* logits = r.logits + row * r.tokens;
    vf best = splat(-3e38f);
    vi winner{};
    for (int first = 0; first < quads; first += W) {
      vu c[4] = {vu(lane + first), vu{} + uint32_t(row), vu{} + r.layer, vu{}};
      philox(c, uint32_t(r.key), uint32_t(r.key >> 32));
      for (int i = 0; i < 4; i++) {
        const int token = i * quads + first;
        const int left = r.tokens - token < quads - first ? r.tokens - token : quads - first;
        if (left <= 0) continue;
        const vf score = load(logits + token, left) + gumbel(c[i]);
        const vi better = (score > best) & (lane < left);
        best = select(better, score, best);
        winner = (vi)select(better, (vf)(lane + token), (vf)winner);
      }
    }
    r.category[row] = first_of_highest(best, winner);
  }
}

}  // namespace MAMBAIR_ISA
