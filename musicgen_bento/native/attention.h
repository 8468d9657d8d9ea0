/* The KV cache in int8 or float32, and attention to it.
 *
 * Keys and values lie in blocks of 64 positions, each of all layers and heads. In a block every head of every layer has a
 * head block:
 *
 *     keys     a matrix whose outputs are positions: int8 [4][D / 4][16][4], float32 [4][D][16]
 *     values   int8 [16][D][4], four positions together; float32 [64][D]
 *     scales   int8 only: [64] of the keys, then [64] of the values
 *
 * In int8 each position of a head has its own scales, so no calibration on music is needed. A query is quantized to a hi and
 * a lo part, as the rows of a product are, and so are the attention weights of a block. Softmax proceeds block by block with
 * the running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867), so each byte is read once.
 */
#pragma once

#include "gemm.h"

#define BLOCK_POSITIONS 64
#define MAX_HEAD_DIM 128

static inline int64_t kv_head_block_bytes(int64_t dim, int is_f32) {
  return 2 * BLOCK_POSITIONS * (is_f32 ? dim * (int64_t)sizeof(float) : dim + (int64_t)sizeof(float));
}

/* The scale that maps the largest magnitude of x [count] to INT8_MAX_LEVEL; NaN if a number is not finite. */
static inline float int8_scale(const float *x, int64_t count) {
  f32x16 abs_max = {0}, nonfinite = {0}; /* nonfinite: a sum of zeros, which turns NaN */
  for (int64_t i = 0; i < count; i += LANES) {
    abs_max = vmax(vabs(load(x + i)), abs_max);
    nonfinite += load(x + i) * 0.0f;
  }
  return hmax(abs_max) / INT8_MAX_LEVEL + hsum(nonfinite);
}

/* Quantizes x [count] with a scale. NaN becomes 0. */
static inline void quantize_int8(const float *x, int64_t count, float scale, int8_t *to) {
  const f32x16 inverse_scale = splat(scale > 0 ? 1.0f / scale : 0); /* 0 if the scale is NaN */
  for (int64_t i = 0; i < count; i += LANES) {
    const f32x16 v = load(x + i) * inverse_scale;
    const f32x16 whole = round_even(vselect(v == v, v, splat(0)));
    const i8x16 bytes = __builtin_convertvector(__builtin_convertvector(whole, i32x16), i8x16);
    memcpy(to + i, &bytes, sizeof bytes);
  }
}

/* Packs four signed bytes for `dot4`, which reads ZERO_POINT as 0. */
static inline void pack4(uint8_t *to, const int8_t *bytes) {
  uint32_t four;
  memcpy(&four, bytes, sizeof four);
  four ^= ZERO_POINT * 0x01010101u; /* equals adding ZERO_POINT to each byte */
  memcpy(to, &four, sizeof four);
}

/* slot: the position's index in its block. */
static inline void store_kv_f32(uint8_t *head_block, int64_t slot, int64_t dim, const float *key, const float *value) {
  float *keys = (float *)head_block + slot / LANES * LANES * dim + slot % LANES;
  for (int64_t i = 0; i < dim; i++) keys[i * LANES] = key[i];
  memcpy((float *)head_block + (BLOCK_POSITIONS + slot) * dim, value, dim * sizeof *value);
}

static inline void store_kv_int8(uint8_t *head_block, int64_t slot, int64_t dim, const float *key, const float *value) {
  int8_t bytes[MAX_HEAD_DIM];
  float *scales = (float *)(head_block + 2 * BLOCK_POSITIONS * dim);
  scales[slot] = int8_scale(key, dim);
  scales[BLOCK_POSITIONS + slot] = int8_scale(value, dim);
  quantize_int8(key, dim, scales[slot], bytes);
  uint8_t *to = head_block + slot / LANES * LANES * dim + slot % LANES * 4;
  for (int64_t i = 0; i < dim; i += 4) pack4(to + i * LANES, bytes + i);
  quantize_int8(value, dim, scales[BLOCK_POSITIONS + slot], bytes);
  uint8_t *values = head_block + BLOCK_POSITIONS * dim + slot / 4 * 4 * dim + slot % 4;
  for (int64_t i = 0; i < dim; i++) values[4 * i] = (uint8_t)bytes[i] ^ ZERO_POINT;
}

/* Stores the key [D] and the value [D] of a position.
 *
 * blocks: the sequence's block table. head_offset: bytes from the begin of a block to the head block.
 */
static void store_kv(uint8_t *const *blocks, int64_t head_offset, int64_t position, int64_t dim, int is_f32,
                     const float *key, const float *value) {
  uint8_t *head_block = blocks[position / BLOCK_POSITIONS] + head_offset;
  (is_f32 ? store_kv_f32 : store_kv_int8)(head_block, position % BLOCK_POSITIONS, dim, key, value);
}

/* Prefetches for writing what `store_kv_int8` will write for a position. */
static inline void prefetch_kv_slot(uint8_t *const *blocks, int64_t head_offset, int64_t position, int64_t dim) {
  const uint8_t *head_block = blocks[position / BLOCK_POSITIONS] + head_offset;
  const int64_t slot = position % BLOCK_POSITIONS;
  for (int64_t i = 0; i < dim; i += 4) __builtin_prefetch(head_block + slot / LANES * LANES * dim + i * LANES, 1);
  for (int64_t i = 0; i < dim; i += LANES)
    __builtin_prefetch(head_block + (BLOCK_POSITIONS + slot / 4 * 4) * dim + 4 * i, 1);
  __builtin_prefetch(head_block + 2 * BLOCK_POSITIONS * dim + slot * sizeof(float), 1);
  __builtin_prefetch(head_block + 2 * BLOCK_POSITIONS * dim + (BLOCK_POSITIONS + slot) * sizeof(float), 1);
}

/* Prefetches the keys of a head block. */
static inline void prefetch_kv_head_block(const uint8_t *head_block, int64_t dim) {
  for (int64_t i = 0; i < BLOCK_POSITIONS * dim; i += 64) __builtin_prefetch(head_block + i);
}

/* A query [D] divided by sqrt(D): as floats, and quantized to a hi and a lo part. */
typedef struct {
  _Alignas(64) float floats[MAX_HEAD_DIM];
  int8_t parts[2 * MAX_HEAD_DIM];
  int32_t sums[2];
  float scale;
} Query;

/* The scores of 16 keys, group `i` of a head block. next: the head block to prefetch. */
static inline f32x16 score_keys(const Query *q, const uint8_t *head_block, int64_t i, const int64_t dim, const int is_f32,
                                const uint8_t *next) {
  if (is_f32) {
    f32x16 sum = {0};
    for (int64_t j = 0; j < dim; j++)
      sum += load((const float *)head_block + i * LANES * dim + j * LANES) * q->floats[j];
    return sum;
  }
  i32x16 hi_sum = {0}, lo_sum = {0};
  for (int64_t j = 0; j < dim; j += 4) {
    const uint8_t *keys = head_block + i * LANES * dim + j * LANES;
    const int8_t *part = q->parts + j / K_BLOCK * 2 * K_BLOCK + j % K_BLOCK;
    int32_t hi, lo;
    memcpy(&hi, part, sizeof hi);
    memcpy(&lo, part + K_BLOCK, sizeof lo);
    __builtin_prefetch(next + (keys - head_block), 0, 2);
    __builtin_prefetch(keys + PREFETCH_L1_BYTES);
    hi_sum = dot4(hi_sum, keys, hi);
    lo_sum = dot4(lo_sum, keys, lo);
  }
  const f32x16 hi = __builtin_convertvector(hi_sum - q->sums[0], f32x16);
  const f32x16 lo = __builtin_convertvector(lo_sum - q->sums[1], f32x16);
  const float *scales = (const float *)(head_block + 2 * BLOCK_POSITIONS * dim);
  return (hi + lo * (1.0f / LO_LEVELS)) * q->scale * load(scales + i * LANES);
}

/* out [D] += weights [count] times the float32 values [count][D]. */
static inline void add_values_f32(f32x16 *out, const float *weights, const uint8_t *head_block, int64_t count,
                                  const int64_t dim) {
  for (int64_t t = 0; t < count; t++)
    for (int64_t i = 0; i < dim; i += LANES)
      out[i / LANES] += weights[t] * load((const float *)head_block + (BLOCK_POSITIONS + t) * dim + i);
}

/* out [D] += weights [count] times the int8 values [count][D].
 *
 * weights: [64], with the values' scales multiplied in; 0 from `count` on. max_weight: the largest of them.
 */
static inline void add_values_int8(f32x16 *out, const float *weights, float max_weight, const uint8_t *head_block,
                                   int64_t count, const int64_t dim, const uint8_t *next) {
  _Alignas(64) int8_t hi[BLOCK_POSITIONS], lo[BLOCK_POSITIONS];
  const f32x16 inverse_scale = splat(max_weight > 0 ? INT8_MAX_LEVEL / max_weight : 0);
  i32x16 hi_sum = {0}, lo_sum = {0};
  for (int64_t t = 0; t < BLOCK_POSITIONS; t += LANES) {
    const f32x16 v = load(weights + t) * inverse_scale;
    quantize_hi_lo(vselect(v == v, v, splat(0)), hi + t, lo + t, &hi_sum, &lo_sum);
  }
  i32x16 hi_out[MAX_HEAD_DIM / LANES] = {{0}}, lo_out[MAX_HEAD_DIM / LANES] = {{0}};
  for (int64_t t = 0; t < count; t += 4) {
    int32_t hi4, lo4;
    memcpy(&hi4, hi + t, 4);
    memcpy(&lo4, lo + t, 4);
    for (int64_t i = 0; i < dim / LANES; i++) {
      const uint8_t *values = head_block + (BLOCK_POSITIONS + t) * dim + 4 * LANES * i;
      __builtin_prefetch(next + (values - head_block), 0, 2);
      __builtin_prefetch(values + PREFETCH_L1_BYTES);
      hi_out[i] = dot4(hi_out[i], values, hi4);
      lo_out[i] = dot4(lo_out[i], values, lo4);
    }
  }
  const int32_t hi_zero = ZERO_POINT * hsum_i32(hi_sum), lo_zero = ZERO_POINT * hsum_i32(lo_sum);
  for (int64_t i = 0; i < dim / LANES; i++) {
    const f32x16 hi_part = __builtin_convertvector(hi_out[i] - hi_zero, f32x16);
    const f32x16 lo_part = __builtin_convertvector(lo_out[i] - lo_zero, f32x16);
    out[i] += (hi_part + lo_part * (1.0f / LO_LEVELS)) * (max_weight / INT8_MAX_LEVEL);
  }
}

/* The body of `attend`, inlined for constant `dim` and `is_f32`. */
__attribute__((always_inline)) static inline void attend_specialized(
    uint8_t *const *blocks, int64_t head_offset, int64_t length, const int64_t dim, const int is_f32, const float *query,
    float *attn_out, const uint8_t *after) {
  _Alignas(64) float weights[BLOCK_POSITIONS];
  Query q;
  const float inverse_root = 1.0f / __builtin_sqrtf((float)dim);
  for (int64_t i = 0; i < dim; i++) q.floats[i] = query[i] * inverse_root;
  if (!is_f32) {
    QuantizedRows row = {NULL, q.parts, 2, q.sums, &q.scale};
    quantize_activations(q.floats, dim, round_up(dim, K_BLOCK), &row, 0);
  }
  f32x16 sum = {0}, out[MAX_HEAD_DIM / LANES] = {{0}};
  float running_max = -__builtin_inff();
  for (int64_t begin = 0; begin < length; begin += BLOCK_POSITIONS) {
    const uint8_t *head_block = blocks[begin / BLOCK_POSITIONS] + head_offset;
    const uint8_t *next =
        begin + BLOCK_POSITIONS < length ? blocks[begin / BLOCK_POSITIONS + 1] + head_offset : after;
    const float *value_scales = (const float *)(head_block + 2 * BLOCK_POSITIONS * dim) + BLOCK_POSITIONS;
    const int64_t count = length - begin < BLOCK_POSITIONS ? length - begin : BLOCK_POSITIONS;
    f32x16 scores[BLOCK_POSITIONS / LANES], lane_max = splat(running_max);
    const int64_t lane_groups = (count + LANES - 1) / LANES;
    for (int64_t i = 0; i < lane_groups; i++) {
      const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      scores[i] = vselect(lane + (int32_t)(i * LANES) < (int32_t)count,
                          score_keys(&q, head_block, i, dim, is_f32, next), splat(-__builtin_inff()));
      lane_max = vmax(scores[i], lane_max);
    }
    const float previous_max = running_max;
    running_max = hmax(lane_max);
    const f32x16 rescale = vexp(splat(previous_max - running_max));
    sum *= rescale;
    for (int64_t i = 0; i < dim / LANES; i++) out[i] *= rescale;
    f32x16 max_weight = {0};
    for (int64_t i = 0; i < lane_groups; i++) {
      const f32x16 weight = vselect(scores[i] == -__builtin_inff(), splat(0), vexp(scores[i] - running_max));
      const f32x16 scaled =
          is_f32 ? weight : weight * vselect(weight > 0.0f, load(value_scales + i * LANES), splat(0));
      sum += weight + scaled * 0.0f; /* a scale that is NaN makes the sum NaN */
      max_weight = vmax(scaled, max_weight);
      store(weights + i * LANES, scaled);
    }
    if (is_f32) {
      add_values_f32(out, weights, head_block, count, dim);
    } else {
      for (int64_t i = lane_groups; i < BLOCK_POSITIONS / LANES; i++) store(weights + i * LANES, splat(0));
      add_values_int8(out, weights, hmax(max_weight), head_block, count, dim, next);
    }
  }
  const f32x16 inverse_sum = splat(1.0f / hsum(sum));
  for (int64_t i = 0; i < dim / LANES; i++) store(attn_out + i * LANES, out[i] * inverse_sum);
}

/* Attention of one head: query [D] over the first `length` positions -> attn_out [D].
 *
 * blocks: the sequence's block table. head_offset: bytes from the begin of a block to the head block. after: the head block
 * that the thread reads next; it is prefetched.
 */
static void attend(uint8_t *const *blocks, int64_t head_offset, int64_t length, int64_t dim, int is_f32,
                   const float *query, float *attn_out, const uint8_t *after) {
  if (dim == 64 && !is_f32) /* the head size of all released models */
    attend_specialized(blocks, head_offset, length, 64, 0, query, attn_out, after);
  else if (dim == 64)
    attend_specialized(blocks, head_offset, length, 64, 1, query, attn_out, after);
  else
    attend_specialized(blocks, head_offset, length, dim, is_f32, query, attn_out, after);
}
