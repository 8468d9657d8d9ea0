/* Vectors of 16 lanes, in the compiler's vector extension. The compiler lowers them to the processor's instructions; only
 * `dot4` uses intrinsics.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define LANES 16
#define PREFETCH_L1_BYTES 2048 /* distance of the prefetch into the first-level cache */
#define PREFETCH_L2_BYTES 6144 /* distance of the prefetch into the second-level cache */

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));

/* Prefetches the cache lines that a sequential read at `memory` reaches next. The barrier stops the compiler from grouping
 * several prefetches: in groups, memory delivers a fifth less (docs/performance.md).
 */
static inline void prefetch(const void *memory) {
  __builtin_prefetch((const char *)memory + PREFETCH_L2_BYTES, 0, 2);
  __builtin_prefetch((const char *)memory + PREFETCH_L1_BYTES);
  __asm__ volatile("" ::: "memory");
}

/* The smallest multiple of `step` that is at least `number`. */
static inline int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

static inline f32x16 load(const float *from) {
  f32x16 x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, f32x16 x) { memcpy(to, &x, sizeof x); }

/* All lanes equal to x. */
static inline f32x16 splat(float x) { return x - (f32x16){0}; }

/* Lane by lane: `yes` where the mask's bits are ones, `no` where they are zeros. */
static inline f32x16 vselect(i32x16 mask, f32x16 yes, f32x16 no) {
  return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}

/* The larger of a and b, lane by lane; b where either is NaN. */
static inline f32x16 vmax(f32x16 a, f32x16 b) { return vselect(a > b, a, b); }

static inline f32x16 vabs(f32x16 x) { return (f32x16)((i32x16)x & 0x7fffffff); }

/* The sum of all lanes, as a binary tree: the order is part of the result. */
static inline float hsum(f32x16 x) {
  float lane[LANES];
  store(lane, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

__attribute__((unused)) static inline int32_t hsum_i32(i32x16 x) {
  int32_t lane[LANES], sum = 0;
  memcpy(lane, &x, sizeof x);
  for (int i = 0; i < LANES; i++) sum += lane[i];
  return sum;
}

/* The largest lane. */
static inline float hmax(f32x16 x) {
  float lane[LANES];
  store(lane, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

/* Rounds to the nearest integer, ties to even, for |x| < 2^22. */
static inline f32x16 round_even(f32x16 x) {
  const f32x16 magic = splat(12582912.0f); /* 1.5 * 2^23: the sum has no bits left for a fraction */
  return (x + magic) - magic;
}

/* e^x, accurate to a few units in the last place (polynomial of Cephes' expf). NaN stays NaN. */
static inline f32x16 vexp(f32x16 x) {
  x = vselect(x < -87.0f, splat(-87.0f), vselect(x > 88.0f, splat(88.0f), x));
  const f32x16 n = round_even(x * 1.44269504f);
  const f32x16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f32x16 y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const i32x16 power = (__builtin_convertvector(vselect(n == n, n, splat(0)), i32x16) + 127) << 23;
  return y * (f32x16)power;
}

/* GELU, x * Phi(x), with erf by Abramowitz and Stegun 7.1.26: the error is at most 1.5e-7. */
static inline f32x16 gelu(f32x16 x) {
  const f32x16 z = vabs(x) * 0.70710678f;
  const f32x16 t = 1.0f / (1.0f + 0.3275911f * z);
  f32x16 y = splat(1.061405429f);
  y = y * t - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  const f32x16 tail = 0.5f * y * t * vexp(-z * z); /* 1 - Phi(|x|) */
  return x * vselect(x < 0.0f, tail, 1.0f - tail);
}

/* dot4(sum, w, x): adds to each 32-bit lane the dot product of four weight bytes with the four signed bytes of x. `w` holds
 * 16 groups of four bytes; the byte ZERO_POINT stands for 0. Callers subtract ZERO_POINT times the sum of x's bytes.
 */
#if defined(__AVX512VNNI__)
#define ZERO_POINT 128
static inline i32x16 dot4(i32x16 sum, const uint8_t *w, int32_t x) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(x));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define ZERO_POINT 0
static inline i32x16 dot4(i32x16 sum, const uint8_t *w, int32_t x) {
  int32x4_t part[4];
  const int8x16_t all_x = vreinterpretq_s8_s32(vdupq_n_s32(x));
  memcpy(part, &sum, sizeof part);
  for (int i = 0; i < 4; i++) part[i] = vdotq_s32(part[i], vld1q_s8((const int8_t *)w + 16 * i), all_x);
  memcpy(&sum, part, sizeof part);
  return sum;
}
#else
#define ZERO_POINT 128
/* The sums of neighbouring products: pmaddwd of AVX2. */
static inline i16x32 madd_i16(i16x32 a, i16x32 b) {
  const i32x16 odd = ((i32x16)a >> 16) * ((i32x16)b >> 16);
  const i32x16 even = (((i32x16)a << 16) >> 16) * (((i32x16)b << 16) >> 16);
  return (i16x32)(odd + even);
}
static inline i32x16 dot4(i32x16 sum, const uint8_t *w, int32_t x) {
  u32x16 bytes;
  memcpy(&bytes, w, sizeof bytes);
  const i16x32 even = (i16x32)(bytes & 0x00ff00ffu), odd = (i16x32)((bytes >> 8) & 0x00ff00ffu);
  const i32x16 word = x - (i32x16){0};
  const i16x32 x_even = (i16x32)((((word << 24) >> 24) & 0xffff) | (((word << 8) >> 24) << 16));
  const i16x32 x_odd = (i16x32)((((word << 16) >> 24) & 0xffff) | ((word >> 24) << 16));
  return sum + (i32x16)madd_i16(even, x_even) + (i32x16)madd_i16(odd, x_odd);
}
#endif
