/* Cross-attention to a short prompt, folded.
 *
 * A head hears of a prompt's T tokens softmax(x Q' K') V O', where x is a row and Q, O are the layer's matrices: K Q and
 * V O' depend on the prompt alone. They have T rows a head, where Q and O have as many as a head has numbers. So of a
 * short prompt these are multiplied out when a clip begins, and kept in bytes, as matrices are. A step of one clip then
 * reads of small with 16 tokens 13 MB, where it would read 50; but 16 clips read it 16 times.
 *
 * In memory, layer after layer: the matrix of scores [up(heads * T, 16)][up(dim, 64)], its scales; the matrix of what is heard
 * [dim][up(heads * T, 64)], its scales.
 */
#pragma once

#include "attention.h"

#define SHORT 24 /* tokens; what more of them would save one clip, it would cost many more */
#define WIDTH 32 /* as many in vectors */

typedef struct {
  Matrix scores, heard;
} Folded;

/* Of a layer. */
static int64_t folded_bytes(int64_t dim, int64_t heads, int64_t tokens) {
  const int64_t rows = up(heads * tokens, LANES), width = up(heads * tokens, DEPTH);
  return rows * up(dim, DEPTH) + dim * width + (rows + dim) * (int64_t)sizeof(float);
}

static Folded folded(const uint8_t *memory, int64_t layer, int64_t dim, int64_t heads, int64_t tokens) {
  const int64_t rows = up(heads * tokens, LANES), depth = up(dim, DEPTH), width = up(heads * tokens, DEPTH);
  const uint8_t *scores = memory + layer * folded_bytes(dim, heads, tokens), *scales = scores + rows * depth;
  const uint8_t *heard = scales + rows * sizeof(float);
  return (Folded){{scores, (const float *)scales, rows, depth}, {heard, (const float *)(heard + dim * width), dim, width}};
}

/* Sixteen outputs of four inputs, as numbers without their scales. */
static inline void numbers_of(const Matrix *m, int64_t output, int64_t input, F *to) {
  U words;
  memcpy(&words, (const uint8_t *)m->packed + output * m->inputs + input * LANES, sizeof words);
  words ^= MIDDLE * 0x01010101u;
  for (int i = 0; i < 4; i++) to[i] = __builtin_convertvector((I)(words << (24 - 8 * i)) >> 24, F);
}

/* Sixteen numbers each of four inputs as a step of `dot4` reads them, by scales. */
static inline U packed_four(const F *numbers, F per) {
  U words = {0};
  for (int i = 0; i < 4; i++) {
    const F v = numbers[i] * per, whole = nearest(choose(v == v, v, all(0)));
    words |= ((U)__builtin_convertvector(whole, I) & 0xffu) << (8 * i);
  }
  return words ^ MIDDLE * 0x01010101u;
}

/* How large they are, number by number of sixteen; NaN where one is not finite. */
static inline void measure(F x, F *most, F *broken) { *most = larger(magnitude(x), *most), *broken += x * 0.0f; }

static inline F per_scale(F scale) { return choose(scale > 0.0f, 1.0f / scale, all(0)); }

/* Floats that folding works in. */
static int64_t folding_room(int64_t dim, int64_t heads) {
  const int64_t scores = dim * (dim / heads + WIDTH), heard = up(heads * SHORT, 4) * LANES;
  return scores > heard ? scores : heard;
}

/* A head's rows of the scores, token by token in vectors. keys: [tokens], each `stride` from the last. work: to work in. */
static void fold_scores(const Matrix *query, const float *keys, int64_t stride, int64_t dim, int64_t heads, int64_t tokens,
                        int64_t head, const Matrix *to, float *work) {
  const int64_t head_dim = dim / heads, first = head * head_dim;
  float *unpacked = work, *made = work + dim * head_dim; /* [dim][head_dim], [dim][WIDTH] */
  _Alignas(64) float turned[WIDEST * WIDTH] = {0};       /* [head_dim][WIDTH] */
  for (int64_t d = 0; d < head_dim; d++)
    for (int64_t t = 0; t < tokens; t++)
      turned[d * WIDTH + t] = keys[t * stride + first + d] * (1.0f / __builtin_sqrtf((float)head_dim));
  for (int64_t d = 0; d < head_dim; d += LANES)
    for (int64_t i = 0; i < dim; i += 4) {
      F numbers[4];
      numbers_of(query, first + d, i, numbers);
      for (int j = 0; j < 4; j++) store(unpacked + (i + j) * head_dim + d, numbers[j] * load(query->scales + first + d));
    }
  for (int64_t t = 0; t < tokens; t += LANES) {
    F most = {0}, broken = {0};
    for (int64_t i = 0; i < dim; i += 8) {
      F sums[8] = {{0}};
      for (int64_t d = 0; d < head_dim; d++)
        for (int j = 0; j < 8; j++) sums[j] += load(turned + d * WIDTH + t) * unpacked[(i + j) * head_dim + d];
      for (int j = 0; j < 8; j++) measure(sums[j], &most, &broken), store(made + (i + j) * WIDTH + t, sums[j]);
    }
    const F scale = most * (1.0f / LEVELS), marked = scale + broken, per = per_scale(scale);
    for (int64_t i = 0; i < dim; i += 4) {
      F numbers[4];
      for (int j = 0; j < 4; j++) numbers[j] = load(made + (i + j) * WIDTH + t);
      const U words = packed_four(numbers, per);
      for (int64_t l = 0; l < LANES && t + l < tokens; l++) {
        const int64_t row = head * tokens + t + l;
        memcpy((uint8_t *)to->packed + row / LANES * LANES * to->inputs + i * LANES + row % LANES * 4, (char *)&words + 4 * l, 4);
      }
    }
    for (int64_t l = 0; l < LANES && t + l < tokens; l++) ((float *)to->scales)[head * tokens + t + l] = marked[l];
  }
}

/* Sixteen outputs of what is heard. values: [tokens up to a multiple of 8], each `stride` from the last. */
static void fold_heard(const Matrix *out, const float *values, int64_t stride, int64_t dim, int64_t heads, int64_t tokens,
                       int64_t output, const Matrix *to, float *work) {
  const int64_t head_dim = dim / heads, rows = heads * tokens;
  const F scales = load(out->scales + output);
  F most = {0}, broken = {0};
  for (int64_t head = 0; head < heads; head++)
    for (int64_t t = 0; t < tokens; t += 8) {
      F sums[8] = {{0}};
      for (int64_t i = head * head_dim; i < (head + 1) * head_dim; i += 4) {
        F numbers[4];
        numbers_of(out, output, i, numbers);
        for (int j = 0; j < 4; j++)
          for (int k = 0; k < 8; k++) sums[k] += numbers[j] * values[(t + k) * stride + i + j];
      }
      for (int k = 0; k < 8 && t + k < tokens; k++) {
        measure(sums[k] * scales, &most, &broken);
        store(work + (head * tokens + t + k) * LANES, sums[k] * scales);
      }
    }
  for (int64_t row = rows; row % 4; row++) store(work + row * LANES, all(0));
  const F scale = most * (1.0f / LEVELS), per = per_scale(scale);
  store((float *)to->scales + output, scale + broken);
  for (int64_t row = 0; row < rows; row += 4) {
    F numbers[4];
    for (int i = 0; i < 4; i++) numbers[i] = load(work + (row + i) * LANES);
    const U words = packed_four(numbers, per);
    memcpy((uint8_t *)to->packed + output * to->inputs + row * LANES, &words, sizeof words);
  }
}

/* A row's scores -> what is heard of each token: a softmax of each head's. Zeros behind the last. */
static void soften(float *scores, int64_t heads, int64_t tokens) {
  for (int64_t head = 0; head < heads; head++) {
    float *own = scores + head * tokens, top = own[0];
    for (int64_t t = 1; t < tokens; t++) top = own[t] > top ? own[t] : top;
    F weights[(SHORT + LANES - 1) / LANES], sum = {0};
    const int64_t stretches = (tokens + LANES - 1) / LANES;
    for (int64_t i = 0; i < stretches; i++) {
      float lane[LANES];
      for (int64_t j = 0; j < LANES; j++) lane[j] = i * LANES + j < tokens ? own[i * LANES + j] - top : -__builtin_inff();
      const F x = load(lane);
      weights[i] = choose(x == -__builtin_inff(), all(0), exponential(x));
      sum += weights[i];
    }
    const float whole = 1.0f / total(sum);
    for (int64_t i = 0; i < stretches; i++) {
      float lane[LANES];
      store(lane, weights[i] * whole);
      for (int64_t j = 0; j < LANES && i * LANES + j < tokens; j++) own[i * LANES + j] = lane[j];
    }
  }
  for (int64_t i = heads * tokens; i % LANES; i++) scores[i] = 0;
}
