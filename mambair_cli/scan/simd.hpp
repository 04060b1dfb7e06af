// Vectors of float, as wide as the instruction set this file is compiled for: GCC/Clang vector extensions,
// with intrinsics only where the compiler has no word for it (masks, scalef).
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace MAMBAIR_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
struct bf16 { uint16_t bits; };

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline vf splat(float v) { return v - vf{}; }
inline vf select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
#if defined(__AVX512F__)
inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline vf max(vf a, vf b) { return select(a > b, a, b); }
#endif
// Rounded once where the instruction set can, and never as a compiler finds best: twice the same.
inline vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < W; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
inline vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

#if defined(__AVX2__) && !defined(__AVX512F__)
inline vi first_lanes(int lanes) { return vi{0, 1, 2, 3, 4, 5, 6, 7} < lanes; }
#endif

// `lanes` < W at the last channels of a row: the other lanes read 0 and are not written.
inline vf load(const float* p, int lanes) {
  vf v{};
  if (lanes >= W) {
    std::memcpy(&v, p, sizeof v);
    return v;
  }
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), p);
#elif defined(__AVX2__)
  return (vf)_mm256_maskload_ps(p, (__m256i)first_lanes(lanes));
#else
  std::memcpy(&v, p, size_t(lanes) * 4);
  return v;
#endif
}

inline vf load(const bf16* p, int lanes) {
#if defined(__AVX512F__)
  __m256i half = lanes >= W ? _mm256_loadu_si256((const __m256i*)p)
                            : _mm256_maskz_loadu_epi16((__mmask16)((1u << lanes) - 1), p);
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  vi v{};
  for (int i = 0; i < lanes && i < W; i++) v[i] = int32_t(uint32_t(p[i].bits) << 16);
  return (vf)v;
#endif
}

inline void store(float* p, vf v, int lanes) {
  if (lanes >= W) {
    std::memcpy(p, &v, sizeof v);
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, (__m256i)first_lanes(lanes), (__m256)v);
#else
  std::memcpy(p, &v, size_t(lanes) * 4);
#endif
}

// Lanes [from, to) of v to the places that they would have in a vector at p.
inline void store_some(float* p, vf v, int from, int to) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << to) - (1u << from)), (__m512)v);
#else
  for (int i = from; i < to; i++) p[i] = v[i];
#endif
}

inline void store(bf16* p, vf v, int lanes) {  // round to nearest even
  vi bits = (vi)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#if defined(__AVX512F__)
  const __mmask16 mask = lanes >= W ? (__mmask16)0xffff : (__mmask16)((1u << lanes) - 1);
  _mm512_mask_cvtepi32_storeu_epi16(p, mask, (__m512i)bits);
#else
  for (int i = 0; i < lanes && i < W; i++) p[i].bits = uint16_t(bits[i]);
#endif
}

// 2^x for x <= 0 (and below 127): 1 + x q(x) on [-1/2, 1/2], q minimax of degree 4 for (2^x - 1) / x. The relative error is
// 1.7e-7 at the edges and far less near 0, where a slowly decaying state would add it up over many steps.
inline vf exp2_negative(vf x) {
#if defined(__AVX512F__)
  vf whole = (vf)_mm512_roundscale_ps((__m512)x, 8);
#else
  x = max(x, splat(-126.0f));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf shifted = x + magic;
  vf whole = shifted - magic;
#endif
  vf f = x - whole;
  vf p = f * 1.333353873e-3f + 9.666245571e-3f;
  p = p * f + 5.550500214e-2f;
  p = p * f + 2.402235134e-1f;
  p = p * f + 6.931471435e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

// softplus(t) = max(t, 0) + log1p(e^-|t|), and e^-|t| itself, which gives the sigmoid
inline vf softplus(vf t, vf& e) {
  e = exp2_negative(abs(t) * -LOG2E);
  vf z = e / (e + 2.0f), z2 = z * z;  // log1p(e) = 2 atanh(e / (2 + e))
  vf q = z2 * (2.0f / 11) + 2.0f / 9;
  q = q * z2 + 2.0f / 7;
  q = q * z2 + 2.0f / 5;
  q = q * z2 + 2.0f / 3;
  q = q * z2 + 2.0f;
  return q * z + max(t, vf{});
}

inline vf sigmoid(vf t, vf e) {  // e = e^-|t|
  vf r = 1.0f / (e + 1.0f);
  return select(t >= 0.0f, r, e * r);
}

inline vf sigmoid(vf t) {
  t *= -LOG2E;
#if !defined(__AVX512F__)
  t = -max(-t, splat(-126.0f));  // there powers end in infinity
#endif
  return 1.0f / (exp2_negative(t) + 1.0f);
}
inline vf silu(vf t) { return t * sigmoid(t); }

// log(x) of normal positive x: x = 2^e m, m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)). Of several
// vectors step by step: a processor looks not far enough ahead to work on them at once if they come one after another.
template <int N>
inline void logs(vf (&x)[N]) {
  vf e[N], s[N], q[N], p[N];
#define EACH _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)
  EACH {
    const vi bits = (vi)x[i] - 0x3f3504f3;  // of sqrt(1/2)
    e[i] = __builtin_convertvector(bits >> 23, vf);
    x[i] = (vf)((bits & 0x7fffff) + 0x3f3504f3);
  }
  EACH s[i] = (x[i] - 1.0f) / (x[i] + 1.0f);
  EACH q[i] = s[i] * s[i];
  EACH p[i] = q[i] * (2.0f / 9) + 2.0f / 7;
  EACH p[i] = p[i] * q[i] + 2.0f / 5;
  EACH p[i] = p[i] * q[i] + 2.0f / 3;
  EACH x[i] = e[i] * LN2 + (s[i] + s[i] + s[i] * q[i] * p[i]);
#undef EACH
}

// x Phi(x), the exact form: Phi by 7.1.26 of Abramowitz & Stegun, within 1e-7. Written with the tail of |x|, so that
// nothing cancels where x is far below 0.
inline vf gelu(vf x) {
  const vf size = abs(x), t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
  vf p = t * (0.5f * 1.061405429f) - 0.5f * 1.453152027f;
  p = p * t + 0.5f * 1.421413741f;
  p = p * t - 0.5f * 0.284496736f;
  p = p * t + 0.5f * 0.254829592f;
  return max(x, vf{}) - size * (p * t * exp2_negative(x * x * (-0.5f * LOG2E)));
}

// The first `lanes` of v, 0 in the others.
inline vf keep(vf v, int lanes) {
#if defined(__AVX512F__)
  return lanes >= W ? v : (vf)_mm512_maskz_mov_ps((__mmask16)((1u << lanes) - 1), (__m512)v);
#else
  for (int i = lanes; i < W; i++) v[i] = 0;
  return v;
#endif
}

#if defined(__AVX512F__)
inline float sum(vf v) { return _mm512_reduce_add_ps((__m512)v); }
#else
inline float sum(vf v) {
  float x[W];
  std::memcpy(x, &v, sizeof x);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}
#endif

// Lane i: the sum of the lanes of v[i].
inline vf sums(const vf v[W]) {
#if defined(__AVX512F__)
  // by halving: 30 shuffles for 16 sums instead of 4 for each
  __m512 x[4];
  for (int j = 0; j < 4; j++) {
    __m512 a = (__m512)v[j], b = (__m512)v[j + 4], c = (__m512)v[j + 8], d = (__m512)v[j + 12];
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    x[j] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  }
  __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  return (vf)_mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
#elif defined(__AVX2__)
  __m256 x[2];
  for (int j = 0; j < 2; j++)
    x[j] = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v[4 * j], (__m256)v[4 * j + 1]),
                          _mm256_hadd_ps((__m256)v[4 * j + 2], (__m256)v[4 * j + 3]));
  return (vf)_mm256_add_ps(_mm256_permute2f128_ps(x[0], x[1], 0x20), _mm256_permute2f128_ps(x[0], x[1], 0x31));
#else
  vf out;
  for (int i = 0; i < W; i++) out[i] = sum(v[i]);
  return out;
#endif
}

// Rows become columns, in place.
inline void transpose(vf v[W]) {
#if defined(__AVX512F__)
  __m512 t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps((__m512)v[i], (__m512)v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps((__m512)v[i], (__m512)v[i + 1]);
  }
  const auto low = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    u[i] = low(t[i], t[i + 2]);
    u[i + 1] = high(t[i], t[i + 2]);
    u[i + 2] = low(t[i + 1], t[i + 3]);
    u[i + 3] = high(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88), d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xDD);
    v[i] = (vf)_mm512_shuffle_f32x4(a, c, 0x88);
    v[i + 4] = (vf)_mm512_shuffle_f32x4(b, d, 0x88);
    v[i + 8] = (vf)_mm512_shuffle_f32x4(a, c, 0xDD);
    v[i + 12] = (vf)_mm512_shuffle_f32x4(b, d, 0xDD);
  }
#else
  float x[W][W], y[W][W];
  std::memcpy(x, v, sizeof x);
  for (int i = 0; i < W; i++)
    for (int j = 0; j < W; j++) y[i][j] = x[j][i];
  std::memcpy(v, y, sizeof y);
#endif
}

// out[i] += sum of the lanes of v[i]
inline void add_sums(const vf* v, int count, float* out) {
  for (int i = 0; i < count; i += W) {
    vf some[W] = {};
    for (int j = 0; j < W && i + j < count; j++) some[j] = v[i + j];
    store(out + i, load(out + i, count - i) + sums(some), count - i);
  }
}

}  // namespace MAMBAIR_ISA
