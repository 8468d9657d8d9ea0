/* Cross-attention to a short prompt with fused projections.
 *
 * Cross-attention of one head to T prompt tokens is softmax(x Q' K') V O'. x is a row of activations; Q and O are the layer's
 * query and output matrices. K Q and V O' depend only on the prompt. For a short prompt (T < head_dim) they are computed once
 * per request and stored in int8: [T, dim] and [dim, T] per head, instead of [head_dim, dim] twice.
 *
 * For musicgen-small and 16 tokens a step of one request reads 13 MB instead of 50 MB. But these matrices belong to a
 * request, so a batch of 16 reads them 16 times.
 *
 * Memory, layer by layer: matrix of scores [round_up(heads * T, 16)][round_up(dim, 64)], its scales; matrix of values
 * [dim][round_up(heads * T, 64)], its scales.
 */
#pragma once

#include "attention.h"

#define MAX_FUSED_TOKENS 24  /* more tokens would save little for one request and cost a batch much */
#define FUSED_TOKEN_LANES 32 /* MAX_FUSED_TOKENS, rounded up to LANES */

/* The fused prompt of one layer. */
typedef struct {
  Matrix scores; /* outputs: heads * T scores */
  Matrix values; /* inputs: heads * T attention weights; outputs: dim */
} FusedPrompt;

/* Bytes of one layer. */
static int64_t fused_prompt_bytes(int64_t dim, int64_t heads, int64_t tokens) {
  const int64_t rows = round_up(heads * tokens, LANES), width = round_up(heads * tokens, K_BLOCK);
  return rows * round_up(dim, K_BLOCK) + dim * width + (rows + dim) * (int64_t)sizeof(float);
}

/* A layer of the fused prompt in `memory`. */
static FusedPrompt fused_prompt(const uint8_t *memory, int64_t layer, int64_t dim, int64_t heads, int64_t tokens) {
  const int64_t rows = round_up(heads * tokens, LANES), depth = round_up(dim, K_BLOCK);
  const int64_t width = round_up(heads * tokens, K_BLOCK);
  const uint8_t *scores = memory + layer * fused_prompt_bytes(dim, heads, tokens), *scales = scores + rows * depth;
  const uint8_t *values = scales + rows * sizeof(float);
  return (FusedPrompt){{scores, (const float *)scales, rows, depth},
                       {values, (const float *)(values + dim * width), dim, width}};
}

/* Unpacks 16 outputs of four inputs to floats, without the outputs' scales. */
static inline void unpack4(const Matrix *m, int64_t output, int64_t input, f32x16 *to) {
  u32x16 words;
  memcpy(&words, (const uint8_t *)m->packed + output * m->inputs + input * LANES, sizeof words);
  words ^= ZERO_POINT * 0x01010101u;
  for (int i = 0; i < 4; i++) to[i] = __builtin_convertvector((i32x16)(words << (24 - 8 * i)) >> 24, f32x16);
}

/* Quantizes four inputs of 16 outputs and packs them for `dot4`. NaN becomes 0. */
static inline u32x16 quantize4(const f32x16 *numbers, f32x16 inverse_scale) {
  u32x16 words = {0};
  for (int i = 0; i < 4; i++) {
    const f32x16 v = numbers[i] * inverse_scale, whole = round_even(vselect(v == v, v, splat(0)));
    words |= ((u32x16)__builtin_convertvector(whole, i32x16) & 0xffu) << (8 * i);
  }
  return words ^ ZERO_POINT * 0x01010101u;
}

/* Updates the largest magnitudes and `nonfinite`, a sum of zeros that turns NaN if a number is not finite. */
static inline void update_range(f32x16 x, f32x16 *abs_max, f32x16 *nonfinite) {
  *abs_max = vmax(vabs(x), *abs_max);
  *nonfinite += x * 0.0f;
}

static inline f32x16 inverse_or_zero(f32x16 scale) { return vselect(scale > 0.0f, 1.0f / scale, splat(0)); }

/* Floats of scratch memory that `fuse_scores` and `fuse_values` need. */
static int64_t fusion_scratch_floats(int64_t dim, int64_t heads) {
  const int64_t scores = dim * (dim / heads + FUSED_TOKEN_LANES), values = round_up(heads * MAX_FUSED_TOKENS, 4) * LANES;
  return scores > values ? scores : values;
}

/* Computes K Q of one head, 16 tokens at a time, and stores its rows in the matrix of scores.
 *
 * query: the layer's query matrix. keys: [tokens], `stride` floats apart. scratch: fusion_scratch_floats().
 */
static void fuse_scores(const Matrix *query, const float *keys, int64_t stride, int64_t dim, int64_t heads, int64_t tokens,
                        int64_t head, const Matrix *to, float *scratch) {
  const int64_t head_dim = dim / heads, first = head * head_dim;
  float *weights = scratch, *products = scratch + dim * head_dim;        /* [dim][head_dim], [dim][FUSED_TOKEN_LANES] */
  _Alignas(64) float transposed[MAX_HEAD_DIM * FUSED_TOKEN_LANES] = {0}; /* keys / sqrt(D), [head_dim][FUSED_TOKEN_LANES] */
  for (int64_t d = 0; d < head_dim; d++)
    for (int64_t t = 0; t < tokens; t++)
      transposed[d * FUSED_TOKEN_LANES + t] = keys[t * stride + first + d] * (1.0f / __builtin_sqrtf((float)head_dim));
  for (int64_t d = 0; d < head_dim; d += LANES)
    for (int64_t i = 0; i < dim; i += 4) {
      f32x16 numbers[4];
      unpack4(query, first + d, i, numbers);
      for (int j = 0; j < 4; j++) store(weights + (i + j) * head_dim + d, numbers[j] * load(query->scales + first + d));
    }
  for (int64_t t = 0; t < tokens; t += LANES) {
    f32x16 abs_max = {0}, nonfinite = {0};
    for (int64_t i = 0; i < dim; i += 8) {
      f32x16 sums[8] = {{0}};
      for (int64_t d = 0; d < head_dim; d++)
        for (int j = 0; j < 8; j++)
          sums[j] += load(transposed + d * FUSED_TOKEN_LANES + t) * weights[(i + j) * head_dim + d];
      for (int j = 0; j < 8; j++) {
        update_range(sums[j], &abs_max, &nonfinite);
        store(products + (i + j) * FUSED_TOKEN_LANES + t, sums[j]);
      }
    }
    const f32x16 scale = abs_max * (1.0f / INT8_MAX_LEVEL), marked_scale = scale + nonfinite;
    const f32x16 inverse_scale = inverse_or_zero(scale);
    for (int64_t i = 0; i < dim; i += 4) {
      f32x16 numbers[4];
      for (int j = 0; j < 4; j++) numbers[j] = load(products + (i + j) * FUSED_TOKEN_LANES + t);
      const u32x16 words = quantize4(numbers, inverse_scale);
      for (int64_t l = 0; l < LANES && t + l < tokens; l++) {
        const int64_t row = head * tokens + t + l;
        uint8_t *packed = (uint8_t *)to->packed + row / LANES * LANES * to->inputs + i * LANES + row % LANES * 4;
        memcpy(packed, (char *)&words + 4 * l, 4);
      }
    }
    for (int64_t l = 0; l < LANES && t + l < tokens; l++)
      ((float *)to->scales)[head * tokens + t + l] = marked_scale[l];
  }
}

/* Computes 16 outputs of V O' for all heads and stores them in the matrix of values.
 *
 * out: the layer's output matrix. values: [tokens, rounded up to 8], `stride` floats apart. scratch: as above.
 */
static void fuse_values(const Matrix *out, const float *values, int64_t stride, int64_t dim, int64_t heads, int64_t tokens,
                        int64_t output, const Matrix *to, float *scratch) {
  const int64_t head_dim = dim / heads, rows = heads * tokens;
  const f32x16 scales = load(out->scales + output);
  f32x16 abs_max = {0}, nonfinite = {0};
  for (int64_t head = 0; head < heads; head++)
    for (int64_t t = 0; t < tokens; t += 8) {
      f32x16 sums[8] = {{0}};
      for (int64_t i = head * head_dim; i < (head + 1) * head_dim; i += 4) {
        f32x16 numbers[4];
        unpack4(out, output, i, numbers);
        for (int j = 0; j < 4; j++)
          for (int k = 0; k < 8; k++) sums[k] += numbers[j] * values[(t + k) * stride + i + j];
      }
      for (int k = 0; k < 8 && t + k < tokens; k++) {
        update_range(sums[k] * scales, &abs_max, &nonfinite);
        store(scratch + (head * tokens + t + k) * LANES, sums[k] * scales);
      }
    }
  for (int64_t row = rows; row % 4; row++) store(scratch + row * LANES, splat(0));
  const f32x16 scale = abs_max * (1.0f / INT8_MAX_LEVEL), inverse_scale = inverse_or_zero(scale);
  store((float *)to->scales + output, scale + nonfinite);
  for (int64_t row = 0; row < rows; row += 4) {
    f32x16 numbers[4];
    for (int i = 0; i < 4; i++) numbers[i] = load(scratch + (row + i) * LANES);
    const u32x16 words = quantize4(numbers, inverse_scale);
    memcpy((uint8_t *)to->packed + output * to->inputs + row * LANES, &words, sizeof words);
  }
}

/* Softmax of each head's scores [tokens], in place, and zeros up to the next multiple of LANES.
 *
 * scores: [round_up(heads * tokens, LANES)].
 */
static void softmax_heads(float *scores, int64_t heads, int64_t tokens) {
  for (int64_t head = 0; head < heads; head++) {
    float *head_scores = scores + head * tokens, max_score = head_scores[0];
    for (int64_t t = 1; t < tokens; t++) max_score = head_scores[t] > max_score ? head_scores[t] : max_score;
    f32x16 weights[(MAX_FUSED_TOKENS + LANES - 1) / LANES], sum = {0};
    const int64_t lane_groups = (tokens + LANES - 1) / LANES;
    for (int64_t i = 0; i < lane_groups; i++) {
      float lane[LANES];
      for (int64_t j = 0; j < LANES; j++)
        lane[j] = i * LANES + j < tokens ? head_scores[i * LANES + j] - max_score : -__builtin_inff();
      const f32x16 x = load(lane);
      weights[i] = vselect(x == -__builtin_inff(), splat(0), vexp(x));
      sum += weights[i];
    }
    const float inverse_sum = 1.0f / hsum(sum);
    for (int64_t i = 0; i < lane_groups; i++) {
      float lane[LANES];
      store(lane, weights[i] * inverse_sum);
      for (int64_t j = 0; j < LANES && i * LANES + j < tokens; j++) head_scores[i * LANES + j] = lane[j];
    }
  }
  for (int64_t i = heads * tokens; i % LANES; i++) scores[i] = 0;
}
