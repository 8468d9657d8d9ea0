/* Keys and values in bytes or floats, and attention to them.
 *
 * They lie in blocks of 64 positions, each of all layers and heads. In a block a head of a layer has a unit:
 *
 *     keys, as a matrix whose outputs are positions: [4][D / 4][16][4] bytes, or [4][D][16] floats
 *     values the other way round, [16][D][4] bytes, of four positions together; or [64][D] floats
 *     of bytes the scales of the 64 keys, and of the 64 values
 *
 * Of bytes each position of a head has scales of its own, so nothing has to be known of the music beforehand. A query has two
 * parts, as the rows of a product, and so have the weights of a block's values. Softmax goes block by block with the
 * largest so far (Milakov and Gimelshein 2018, arXiv:1805.02867), so each byte is read once.
 */
#pragma once

#include "product.h"

#define POSITIONS 64 /* of a block */
#define WIDEST 128   /* numbers of a head */

static inline int64_t unit_bytes(int64_t dim, int floats) {
  return 2 * POSITIONS * (floats ? dim * (int64_t)sizeof(float) : dim + (int64_t)sizeof(float));
}

/* Of x [count], so that the largest is a whole byte; NaN where one of them is not finite. */
static inline float scale_of(const float *x, int64_t count) {
  F most = {0}, broken = {0};
  for (int64_t i = 0; i < count; i += LANES) {
    most = larger(magnitude(load(x + i)), most);
    broken += load(x + i) * 0.0f;
  }
  return largest(most) / LEVELS + total(broken);
}

/* x [count] in bytes, by a scale. */
static inline void to_bytes(const float *x, int64_t count, float scale, int8_t *to) {
  const F per = all(scale > 0 ? 1.0f / scale : 0); /* of NaN too */
  for (int64_t i = 0; i < count; i += LANES) {
    const F v = load(x + i) * per;
    const C bytes = __builtin_convertvector(__builtin_convertvector(nearest(choose(v == v, v, all(0))), I), C);
    memcpy(to + i, &bytes, sizeof bytes);
  }
}

/* Four bytes as `dot4` has them. */
static inline void keep_four(uint8_t *to, const int8_t *bytes) {
  uint32_t four;
  memcpy(&four, bytes, sizeof four);
  four ^= MIDDLE * 0x01010101u; /* the same as to add it */
  memcpy(to, &four, sizeof four);
}

static inline void keep_floats(uint8_t *unit, int64_t place, int64_t dim, const float *key, const float *value) {
  float *keys = (float *)unit + place / LANES * LANES * dim + place % LANES;
  for (int64_t i = 0; i < dim; i++) keys[i * LANES] = key[i];
  memcpy((float *)unit + (POSITIONS + place) * dim, value, dim * sizeof *value);
}

static inline void keep_bytes(uint8_t *unit, int64_t place, int64_t dim, const float *key, const float *value) {
  int8_t bytes[WIDEST];
  float *scales = (float *)(unit + 2 * POSITIONS * dim);
  scales[place] = scale_of(key, dim), scales[POSITIONS + place] = scale_of(value, dim);
  to_bytes(key, dim, scales[place], bytes);
  uint8_t *to = unit + place / LANES * LANES * dim + place % LANES * 4;
  for (int64_t i = 0; i < dim; i += 4) keep_four(to + i * LANES, bytes + i);
  to_bytes(value, dim, scales[POSITIONS + place], bytes);
  uint8_t *values = unit + POSITIONS * dim + place / 4 * 4 * dim + place % 4;
  for (int64_t i = 0; i < dim; i++) values[4 * i] = (uint8_t)bytes[i] ^ MIDDLE;
}

/* Keep the key and the value [D] of a position. */
static void keep(uint8_t *const *blocks, int64_t at, int64_t position, int64_t dim, int floats, const float *key,
                 const float *value) {
  (floats ? keep_floats : keep_bytes)(blocks[position / POSITIONS] + at, position % POSITIONS, dim, key, value);
}

/* Have the place of a position's key and value near before it is kept. */
static inline void expect(uint8_t *const *blocks, int64_t at, int64_t position, int64_t dim) {
  const uint8_t *unit = blocks[position / POSITIONS] + at;
  const int64_t place = position % POSITIONS;
  for (int64_t i = 0; i < dim; i += 4) __builtin_prefetch(unit + place / LANES * LANES * dim + i * LANES, 1);
  for (int64_t i = 0; i < dim; i += LANES) __builtin_prefetch(unit + (POSITIONS + place / 4 * 4) * dim + 4 * i, 1);
  __builtin_prefetch(unit + 2 * POSITIONS * dim + place * sizeof(float), 1);
  __builtin_prefetch(unit + 2 * POSITIONS * dim + (POSITIONS + place) * sizeof(float), 1);
}

/* Have the beginning of a head's unit near. */
static inline void expect_unit(const uint8_t *unit, int64_t dim) {
  for (int64_t i = 0; i < POSITIONS * dim; i += 64) __builtin_prefetch(unit + i);
}

/* A query [D], divided by the root of D: as it is, and in two parts. */
typedef struct {
  _Alignas(64) float floats[WIDEST];
  int8_t bytes[2 * WIDEST];
  int32_t sums[2];
  float scale;
} Query;

/* Scores of sixteen positions. */
static inline F scores_of(const Query *q, const uint8_t *unit, int64_t i, const int64_t dim, const int floats,
                          const uint8_t *next) {
  if (floats) {
    F sum = {0};
    for (int64_t j = 0; j < dim; j++) sum += load((const float *)unit + i * LANES * dim + j * LANES) * q->floats[j];
    return sum;
  }
  I coarse = {0}, fine = {0};
  for (int64_t j = 0; j < dim; j += 4) {
    const uint8_t *keys = unit + i * LANES * dim + j * LANES;
    const int8_t *part = q->bytes + j / DEPTH * 2 * DEPTH + j % DEPTH;
    int32_t c, f;
    memcpy(&c, part, sizeof c);
    memcpy(&f, part + DEPTH, sizeof f);
    __builtin_prefetch(next + (keys - unit), 0, 2);
    __builtin_prefetch(keys + NEAR);
    coarse = dot4(coarse, keys, c);
    fine = dot4(fine, keys, f);
  }
  const F whole = __builtin_convertvector(coarse - q->sums[0], F);
  const F rest = __builtin_convertvector(fine - q->sums[1], F);
  const float *scales = (const float *)(unit + 2 * POSITIONS * dim);
  return (whole + rest * (1.0f / FINER)) * q->scale * load(scales + i * LANES);
}

/* out [D] += weights [count] times values [count][D]. */
static inline void add_floats(F *out, const float *weights, const uint8_t *unit, int64_t count, const int64_t dim) {
  for (int64_t t = 0; t < count; t++)
    for (int64_t i = 0; i < dim; i += LANES)
      out[i / LANES] += weights[t] * load((const float *)unit + (POSITIONS + t) * dim + i);
}

/* The same of bytes. The weights, of which `top` is the largest, are 0 from `count` on. */
static inline void add_bytes(F *out, const float *weights, float top, const uint8_t *unit, int64_t count, const int64_t dim,
                             const uint8_t *next) {
  _Alignas(64) int8_t coarse[POSITIONS], fine[POSITIONS];
  const F per = all(top > 0 ? LEVELS / top : 0);
  I coarse_sum = {0}, fine_sum = {0};
  for (int64_t t = 0; t < POSITIONS; t += LANES) {
    const F v = load(weights + t) * per;
    split(choose(v == v, v, all(0)), coarse + t, fine + t, &coarse_sum, &fine_sum);
  }
  I c[WIDEST / LANES] = {{0}}, f[WIDEST / LANES] = {{0}};
  for (int64_t t = 0; t < count; t += 4) {
    int32_t four_coarse, four_fine;
    memcpy(&four_coarse, coarse + t, 4), memcpy(&four_fine, fine + t, 4);
    for (int64_t i = 0; i < dim / LANES; i++) {
      const uint8_t *values = unit + (POSITIONS + t) * dim + 4 * LANES * i;
      __builtin_prefetch(next + (values - unit), 0, 2);
      __builtin_prefetch(values + NEAR);
      c[i] = dot4(c[i], values, four_coarse);
      f[i] = dot4(f[i], values, four_fine);
    }
  }
  const int32_t coarse_middle = MIDDLE * total_of_integers(coarse_sum), fine_middle = MIDDLE * total_of_integers(fine_sum);
  for (int64_t i = 0; i < dim / LANES; i++) {
    const F whole = __builtin_convertvector(c[i] - coarse_middle, F), rest = __builtin_convertvector(f[i] - fine_middle, F);
    out[i] += (whole + rest * (1.0f / FINER)) * (top / LEVELS);
  }
}

/* `after`: what will be read when this is done. */
__attribute__((always_inline)) static inline void attend_to(
    uint8_t *const *blocks, int64_t at, int64_t length, const int64_t dim, const int floats, const float *query, float *found,
    const uint8_t *after) {
  _Alignas(64) float weights[POSITIONS];
  Query q;
  const float root = 1.0f / __builtin_sqrtf((float)dim);
  for (int64_t i = 0; i < dim; i++) q.floats[i] = query[i] * root;
  if (!floats) {
    Parts parts = {NULL, q.bytes, 2, q.sums, &q.scale};
    divide(q.floats, dim, up(dim, DEPTH), &parts, 0);
  }
  F sum = {0}, out[WIDEST / LANES] = {{0}};
  float top = -__builtin_inff();
  for (int64_t begin = 0; begin < length; begin += POSITIONS) {
    const uint8_t *unit = blocks[begin / POSITIONS] + at;
    const uint8_t *next = begin + POSITIONS < length ? blocks[begin / POSITIONS + 1] + at : after;
    const float *scales = (const float *)(unit + 2 * POSITIONS * dim) + POSITIONS;
    const int64_t count = length - begin < POSITIONS ? length - begin : POSITIONS;
    F scores[POSITIONS / LANES], most = all(top);
    const int64_t stretches = (count + LANES - 1) / LANES;
    for (int64_t i = 0; i < stretches; i++) {
      const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      scores[i] = choose(lane + (int32_t)(i * LANES) < (int32_t)count, scores_of(&q, unit, i, dim, floats, next),
                         all(-__builtin_inff()));
      most = larger(scores[i], most);
    }
    const float before = top;
    top = largest(most);
    const F fade = exponential(all(before - top));
    sum *= fade;
    for (int64_t i = 0; i < dim / LANES; i++) out[i] *= fade;
    F heaviest = {0};
    for (int64_t i = 0; i < stretches; i++) {
      const F weight = choose(scores[i] == -__builtin_inff(), all(0), exponential(scores[i] - top));
      const F scaled = floats ? weight : weight * choose(weight > 0.0f, load(scales + i * LANES), all(0));
      sum += weight + scaled * 0.0f; /* a scale that is not a number is seen here */
      heaviest = larger(scaled, heaviest);
      store(weights + i * LANES, scaled);
    }
    if (floats) {
      add_floats(out, weights, unit, count, dim);
    } else {
      for (int64_t i = stretches; i < POSITIONS / LANES; i++) store(weights + i * LANES, all(0));
      add_bytes(out, weights, largest(heaviest), unit, count, dim, next);
    }
  }
  const F whole = all(1.0f / total(sum));
  for (int64_t i = 0; i < dim / LANES; i++) store(found + i * LANES, out[i] * whole);
}

/* What a query [D] finds in the first `length` positions, [D]. */
static void attend(uint8_t *const *blocks, int64_t at, int64_t length, int64_t dim, int floats, const float *query,
                   float *found, const uint8_t *after) {
  if (dim == 64 && !floats) /* of all released models */
    attend_to(blocks, at, length, 64, 0, query, found, after);
  else if (dim == 64)
    attend_to(blocks, at, length, 64, 1, query, found, after);
  else
    attend_to(blocks, at, length, dim, floats, query, found, after);
}
