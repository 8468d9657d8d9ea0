/* Vectors of sixteen lanes. The compiler lowers them to what the processor has; only `dot4` names its instructions. */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define LANES 16
#define NEAR 2048 /* bytes: what will be read so soon is asked for into the first cache, */
#define FAR 6144  /* and so soon into the second */

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef int16_t S __attribute__((vector_size(64)));
typedef int8_t C __attribute__((vector_size(16)));
typedef int16_t H __attribute__((vector_size(32)));

/* A line of memory is about to be read: ask for those to come. One at a time, which no compiler may gather; a few at once
 * and memory gives a fifth less (docs/performance.md). */
static inline void ask(const void *memory) {
  __builtin_prefetch((const char *)memory + FAR, 0, 2);
  __builtin_prefetch((const char *)memory + NEAR);
  __asm__ volatile("" ::: "memory");
}

static inline int64_t up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

static inline F load(const float *from) {
  F x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, F x) { memcpy(to, &x, sizeof x); }

static inline F all(float x) { return x - (F){0}; }

static inline F choose(I mask, F yes, F no) { return (F)(((I)yes & mask) | ((I)no & ~mask)); }

static inline F larger(F a, F b) { return choose(a > b, a, b); } /* b where one is not a number */

static inline F magnitude(F x) { return (F)((I)x & 0x7fffffff); }

static inline float total(F x) {
  float lane[LANES];
  store(lane, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

__attribute__((unused)) static inline int32_t total_of_integers(I x) {
  int32_t lane[LANES], sum = 0;
  memcpy(lane, &x, sizeof x);
  for (int i = 0; i < LANES; i++) sum += lane[i];
  return sum;
}

static inline float largest(F x) {
  float lane[LANES];
  store(lane, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

/* To the nearest whole number, ties to even; for magnitudes below 2^22. */
static inline F nearest(F x) {
  const F magic = all(12582912.0f); /* 1.5 * 2^23: no room is left behind the point */
  return (x + magic) - magic;
}

/* e^x to a few units in the last place (the polynomial is Cephes' expf); NaN stays NaN. */
static inline F exponential(F x) {
  x = choose(x < -87.0f, all(-87.0f), choose(x > 88.0f, all(88.0f), x));
  const F n = nearest(x * 1.44269504f);
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const I power = (__builtin_convertvector(choose(n == n, n, all(0)), I) + 127) << 23;
  return y * (F)power;
}

/* x * Phi(x), with erf by Abramowitz and Stegun 7.1.26: 1.5e-7 at most. */
static inline F gelu(F x) {
  const F z = magnitude(x) * 0.70710678f;
  const F t = 1.0f / (1.0f + 0.3275911f * z);
  F y = all(1.061405429f);
  y = y * t - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  const F tail = 0.5f * y * t * exponential(-z * z); /* 1 - Phi(|x|) */
  return x * choose(x < 0.0f, tail, 1.0f - tail);
}

/* Of each lane the sum of four products: bytes of `w`, MIDDLE standing for 0, with the four bytes of `x`. */
#if defined(__AVX512VNNI__)
#define MIDDLE 128
static inline I dot4(I sum, const uint8_t *w, int32_t x) {
  return (I)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(x));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define MIDDLE 0
static inline I dot4(I sum, const uint8_t *w, int32_t x) {
  int32x4_t part[4];
  const int8x16_t all_x = vreinterpretq_s8_s32(vdupq_n_s32(x));
  memcpy(part, &sum, sizeof part);
  for (int i = 0; i < 4; i++) part[i] = vdotq_s32(part[i], vld1q_s8((const int8_t *)w + 16 * i), all_x);
  memcpy(&sum, part, sizeof part);
  return sum;
}
#else
#define MIDDLE 128
static inline S pairs(S a, S b) { /* of 32 products of 16 bits the sums of neighbours */
  const I odd = ((I)a >> 16) * ((I)b >> 16), even = (((I)a << 16) >> 16) * (((I)b << 16) >> 16);
  return (S)(odd + even);
}
static inline I dot4(I sum, const uint8_t *w, int32_t x) {
  U bytes;
  memcpy(&bytes, w, sizeof bytes);
  const S even = (S)(bytes & 0x00ff00ffu), odd = (S)((bytes >> 8) & 0x00ff00ffu);
  const I word = x - (I){0};
  const S x_even = (S)((((word << 24) >> 24) & 0xffff) | (((word << 8) >> 24) << 16));
  const S x_odd = (S)((((word << 16) >> 24) & 0xffff) | ((word >> 24) << 16));
  return sum + (I)pairs(even, x_even) + (I)pairs(odd, x_odd);
}
#endif
