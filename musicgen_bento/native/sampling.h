/* Logits to a token, as sampling.py has it, but for which of equals stay under top_p: temperature, top-k or top-p, and
 * Gumbel noise that is a hash of the seed.
 */
#pragma once

#include <math.h>
#include <stdlib.h>

#include "simd.h"

#define GOLDEN 0x9E3779B97F4A7C15u

typedef struct {
  float temperature; /* 0: greedy */
  float top_p;       /* 0: off; wins over top_k */
  int64_t top_k;     /* 0: off */
  uint64_t seed, key;
} Drawing;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/* Standard Gumbel noise of one entry, counted from 1 over all codebooks. */
static inline float gumbel(uint64_t stream, uint64_t entry) {
  const double uniform = ((double)(mix(stream + entry * GOLDEN) >> 11) + 0.5) * 0x1p-53;
  const float below = (float)uniform < 1 - 0x1p-24f ? (float)uniform : 1 - 0x1p-24f;
  return -logf(-log1pf(-below));
}

/* The k-th largest, k from 1. `x` is put into another order (Hoare's quickselect). */
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
        x[i++] = x[j], x[j--] = swapped;
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

/* The smallest of the likeliest that pass `top_p` together. `x` is sorted. */
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

/* One token. `x` [count] are guided logits of a codebook, its entries counted from `first`; `copy` [count] is room. -1:
 * they are not finite. */
static int64_t drawn(float *x, float *copy, int64_t count, int64_t first, const Drawing *by) {
  float broken = 0;
  for (int64_t i = 0; i < count; i++) broken += x[i] * 0.0f;
  if (broken != 0) return -1;
  int64_t best = 0;
  if (by->temperature == 0) {
    for (int64_t i = 1; i < count; i++) best = x[i] > x[best] ? i : best;
    return best;
  }
  for (int64_t i = 0; i < count; i++) copy[i] = x[i] /= by->temperature;
  float least = -__builtin_inff();
  if (by->top_p > 0)
    least = nucleus(copy, count, by->top_p);
  else if (by->top_k > 0 && by->top_k < count)
    least = kth_largest(copy, count, by->top_k);
  const uint64_t stream = mix(mix(by->seed + GOLDEN) + (by->key + 1) * GOLDEN);
  float most = -__builtin_inff();
  for (int64_t i = 0; i < count; i++) {
    if (x[i] < least) continue;
    const float value = x[i] + gumbel(stream, (uint64_t)(first + i + 1));
    if (value > most) most = value, best = i;
  }
  return best;
}
