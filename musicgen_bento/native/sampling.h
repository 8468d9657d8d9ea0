/* Samples a token from logits: temperature, top-k or top-p, and Gumbel noise from a hash of the seed.
 *
 * lm/sampling.py does the same. The two differ only in which of several equal logits top_p keeps.
 */
#pragma once

#include <math.h>
#include <stdlib.h>

#include "simd.h"

#define GOLDEN 0x9E3779B97F4A7C15u /* 2^64 / golden ratio, SplitMix64's increment */

typedef struct {
  float temperature;   /* 0: greedy */
  float top_p;         /* 0: off; overrides top_k */
  int64_t top_k;       /* 0: off */
  uint64_t seed;       /* of the request */
  uint64_t noise_step; /* keys the noise of this position */
} SamplingParams;

/* The finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/* Standard Gumbel noise of one entry. Entries count from 1 over all codebooks. */
static inline float gumbel(uint64_t stream, uint64_t entry) {
  const double uniform = ((double)(mix(stream + entry * GOLDEN) >> 11) + 0.5) * 0x1p-53;
  const float below_one = (float)uniform < 1 - 0x1p-24f ? (float)uniform : 1 - 0x1p-24f;
  return -logf(-log1pf(-below_one));
}

/* The k-th largest of x [count], k from 1 (Hoare's quickselect). It reorders x. */
static float kth_largest(float *x, int64_t count, int64_t k) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const float pivot = x[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) i++;
      while (x[j] < pivot) j--;
      if (i <= j) {
        const float swapped = x[i];
        x[i++] = x[j];
        x[j--] = swapped;
      }
    }
    if (k - 1 <= j)
      high = j;
    else if (k - 1 >= i)
      low = i;
    else
      break;
  }
  return x[k - 1];
}

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

/* The smallest logit in the nucleus of x [count]: the likeliest entries that together exceed top_p. It sorts x. */
static float nucleus(float *x, int64_t count, float top_p) {
  qsort(x, count, sizeof *x, descending);
  double sum = 0, before = 0;
  for (int64_t i = 0; i < count; i++) sum += exp(x[i] - x[0]);
  for (int64_t i = 0; i < count; i++) {
    if (before / sum > top_p) return x[i - 1];
    before += exp(x[i] - x[0]);
  }
  return x[count - 1];
}

/* One token of a codebook; -1 if a logit is not finite.
 *
 * x: [count] guided logits, which are scaled in place. scratch: [count]. first: index of x[0] over all codebooks.
 */
static int64_t sample_token(float *x, float *scratch, int64_t count, int64_t first, const SamplingParams *params) {
  float nonfinite = 0; /* a sum of zeros, which turns NaN if a logit is not finite */
  for (int64_t i = 0; i < count; i++) nonfinite += x[i] * 0.0f;
  if (nonfinite != 0) return -1;
  int64_t best = 0;
  if (params->temperature == 0) {
    for (int64_t i = 1; i < count; i++) best = x[i] > x[best] ? i : best;
    return best;
  }
  for (int64_t i = 0; i < count; i++) scratch[i] = x[i] /= params->temperature;
  float threshold = -__builtin_inff();
  if (params->top_p > 0)
    threshold = nucleus(scratch, count, params->top_p);
  else if (params->top_k > 0 && params->top_k < count)
    threshold = kth_largest(scratch, count, params->top_k);
  const uint64_t stream = mix(mix(params->seed + GOLDEN) + (params->noise_step + 1) * GOLDEN);
  float best_value = -__builtin_inff();
  for (int64_t i = 0; i < count; i++) {
    if (x[i] < threshold) continue;
    const float value = x[i] + gumbel(stream, (uint64_t)(first + i + 1));
    if (value > best_value) {
      best_value = value;
      best = i;
    }
  }
  return best;
}
