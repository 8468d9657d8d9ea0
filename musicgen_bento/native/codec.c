/* Layers of EnCodec's decoder in float32, with time before channels: convolutions of stride 1, ELU, an LSTM, and the overlap
 * of transposed convolutions.
 *
 * The recurrent weights of an LSTM are read again for each frame, so they are stored in 16 bits. Against float32 the samples
 * differ by some millionths.
 *
 * Every sum is computed in one order. So the samples of a sequence depend neither on the other sequences of the batch nor on
 * the length of its chunks. (The kernel does not handle sequences shorter than the padding.)
 */
#include "simd.h"
#include "thread_pool.h"

#if defined(__AVX512F__)
#define ROW_TILE 12 /* rows whose sums stay in registers, for COL_GROUPS times 16 outputs */
#define COL_GROUPS 2
#else
#define ROW_TILE 3
#define COL_GROUPS 1
#endif
#define TASK_ROWS (8 * ROW_TILE)
#define L2_WEIGHT_BYTES (256 << 10) /* weights up to this size stay in the second-level cache for all rows */
#define LSTM_BATCH_TILE 4           /* sequences at once in an LSTM step */
#define ELU_TASK_ELEMENTS 4096

typedef struct {
  const float *packed; /* [outputs / 16][taps * inputs][16] */
  const float *bias;   /* [outputs, rounded up to 16] */
  int64_t inputs, outputs, taps, dilation;
} PackedConv1d;

/* One LSTM layer. The gates of 16 units lie together: [units / 16][4][16]. */
typedef struct {
  const int16_t *packed; /* [units / 16][units][4][16] recurrent weights */
  const float *scales;   /* [units / 16][4][16] scales of these */
  PackedConv1d input;    /* input weights: one tap, 4 * units outputs, with the sum of both biases */
} PackedLstm;

/* ---- convolution */

typedef struct {
  const PackedConv1d *conv;
  const float *x;       /* [batch][times][inputs] */
  float *y;             /* [batch][times - (taps - 1) * dilation][outputs] */
  int64_t batch, times; /* of x */
} ConvArgs;

/* `rows` rows of y, for `groups` times 16 outputs. Both are compile-time constants at each call. */
__attribute__((always_inline)) static inline void conv_rows(
    const PackedConv1d *conv, const float *x, float *y, int64_t output, const int rows, const int groups) {
  const int64_t depth = conv->taps * conv->inputs;
  const float *w = conv->packed + output * depth;
  f32x16 sums[ROW_TILE * COL_GROUPS] = {{0}};
  for (int64_t tap = 0; tap < conv->taps; tap++) {
    const float *from = x + tap * conv->dilation * conv->inputs;
    for (int64_t i = 0; i < conv->inputs; i++, w += LANES) {
      const f32x16 first = load(w), second = groups > 1 ? load(w + depth * LANES) : first;
      prefetch(w);
      if (groups > 1) prefetch(w + depth * LANES);
#pragma clang loop unroll(full)
      for (int r = 0; r < rows; r++) {
        const f32x16 value = splat(from[r * conv->inputs + i]);
        sums[r] += first * value;
        if (groups > 1) sums[ROW_TILE + r] += second * value;
      }
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < groups; g++) {
      const int64_t begin = output + g * LANES, remaining = conv->outputs - begin;
      const f32x16 outputs = sums[g * ROW_TILE + r] + load(conv->bias + begin);
      float *to = y + r * conv->outputs + begin;
      if (remaining >= LANES)
        store(to, outputs);
      else
        memcpy(to, &outputs, remaining * sizeof *to);
    }
}

/* Computes whole tiles of `tile` rows while enough rows remain, and moves x, y and rows on. It is a macro because an inline
 * function with these loops compiles to other code. */
#define FOR_ROW_TILES(tile)                                                               \
  for (; rows >= tile; rows -= tile, x += tile * conv->inputs, y += tile * conv->outputs) \
    conv_rows(conv, x, y, output, tile, groups);

/* `rows` rows of one sequence, for `groups` times 16 outputs. `groups` is a compile-time constant at each call. */
__attribute__((always_inline)) static inline void conv_groups(
    const PackedConv1d *conv, const float *x, float *y, int64_t output, int64_t rows, const int groups) {
  FOR_ROW_TILES(ROW_TILE)
#if ROW_TILE > 4
  FOR_ROW_TILES(4)
#endif
  FOR_ROW_TILES(1)
}

static void conv_task(const PackedConv1d *conv, const float *x, float *y, int64_t output, int64_t rows, int groups) {
  if (groups > 1)
    conv_groups(conv, x, y, output, rows, COL_GROUPS);
  else
    conv_groups(conv, x, y, output, rows, 1);
}

/* One phase: all tasks of a convolution. Tasks with the same weights follow each other if the weights leave the cache, tasks
 * with the same rows if they stay. */
static void conv_phase(ThreadPool *pool, int tid, const ConvArgs *args) {
  const PackedConv1d *conv = args->conv;
  const int64_t span = (conv->taps - 1) * conv->dilation, rows = args->times - span;
  const int64_t parts = (rows + TASK_ROWS - 1) / TASK_ROWS, all_parts = parts * args->batch;
  const int64_t groups = (conv->outputs + COL_GROUPS * LANES - 1) / (COL_GROUPS * LANES);
  const int weights_stay =
      groups * COL_GROUPS * LANES * conv->taps * conv->inputs * (int64_t)sizeof(float) <= L2_WEIGHT_BYTES;
  for (int64_t task; (task = next_task(pool, tid, groups * all_parts)) >= 0;) {
    const int64_t part = weights_stay ? task / groups : task % all_parts;
    const int64_t group = weights_stay ? task % groups : task / all_parts;
    const int64_t sequence = part / parts, begin = part % parts * TASK_ROWS, output = group * COL_GROUPS * LANES;
    const int64_t count = rows - begin < TASK_ROWS ? rows - begin : TASK_ROWS;
    conv_task(conv, args->x + (sequence * args->times + begin) * conv->inputs,
              args->y + (sequence * rows + begin) * conv->outputs, output, count,
              COL_GROUPS > 1 && conv->outputs - output > LANES ? COL_GROUPS : 1);
  }
  barrier(pool);
}

static void conv_work(ThreadPool *pool, int tid, void *args) { conv_phase(pool, tid, args); }

/* ---- LSTM */

typedef struct {
  const PackedLstm *lstm;
  ConvArgs input; /* computes `gates` from the input */
  int64_t units;
  float *gates;  /* [batch][times][4 * units] */
  float *y;      /* [batch][times][units] */
  float *hidden; /* [2][batch][units]; steps read one half and write the other in turn */
  float *cell;   /* [batch][units] */
} LstmArgs;

static inline f32x16 sigmoid(f32x16 x) { return 1.0f / (1.0f + vexp(-x)); }

static inline f32x16 hyperbolic_tangent(f32x16 x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

/* One step of 16 units from `unit`, for `count` sequences from `first`. `count` is a compile-time constant at each call. */
__attribute__((always_inline)) static inline void lstm_step(
    const LstmArgs *args, int64_t unit, int64_t time, int64_t first, const int count) {
  const int64_t units = args->units, batch = args->input.batch, times = args->input.times;
  const int16_t *w = args->lstm->packed + 4 * unit * units;
  const float *previous = args->hidden + (time % 2 * batch + first) * units;
  f32x16 sums[4 * LSTM_BATCH_TILE] = {{0}};
  for (int64_t i = 0; i < units; i++) {
#pragma clang loop unroll(full)
    for (int gate = 0; gate < 4; gate++, w += LANES) {
      i16x16 numbers;
      memcpy(&numbers, w, sizeof numbers);
      const f32x16 weights = __builtin_convertvector(numbers, f32x16);
      if (gate % 2 == 0) prefetch(w);
#pragma clang loop unroll(full)
      for (int s = 0; s < count; s++) sums[gate * LSTM_BATCH_TILE + s] += weights * previous[s * units + i];
    }
  }
  for (int s = 0; s < count; s++) {
    const int64_t row = (first + s) * times + time;
    f32x16 gate[4]; /* input, forget, cell, output, as torch orders them */
    for (int i = 0; i < 4; i++)
      gate[i] = sums[i * LSTM_BATCH_TILE + s] * load(args->lstm->scales + 4 * unit + i * LANES) +
                load(args->gates + row * 4 * units + 4 * unit + i * LANES);
    float *cell = args->cell + (first + s) * units + unit;
    const f32x16 next_cell = sigmoid(gate[1]) * load(cell) + sigmoid(gate[0]) * hyperbolic_tangent(gate[2]);
    const f32x16 next_hidden = sigmoid(gate[3]) * hyperbolic_tangent(next_cell);
    store(cell, next_cell);
    store(args->hidden + ((time + 1) % 2 * batch + first + s) * units + unit, next_hidden);
    store(args->y + row * units + unit, next_hidden);
  }
}

static void lstm_work(ThreadPool *pool, int tid, void *call_args) {
  const LstmArgs *args = call_args;
  const int64_t batch = args->input.batch;
  conv_phase(pool, tid, &args->input);
  for (int64_t time = 0; time < args->input.times; time++) {
    for (int64_t task; (task = next_task(pool, tid, args->units / LANES)) >= 0;) {
      int64_t first = 0;
      for (; batch - first >= LSTM_BATCH_TILE; first += LSTM_BATCH_TILE)
        lstm_step(args, task * LANES, time, first, LSTM_BATCH_TILE);
      for (; first < batch; first++) lstm_step(args, task * LANES, time, first, 1);
    }
    barrier(pool);
  }
}

/* ---- ELU */

typedef struct {
  const float *x; /* [batch][count] */
  float *y;       /* [batch][offset + count] */
  int64_t batch, count, offset;
} EluArgs;

static void elu_work(ThreadPool *pool, int tid, void *call_args) {
  const EluArgs *args = call_args;
  const int64_t parts = (args->count + ELU_TASK_ELEMENTS - 1) / ELU_TASK_ELEMENTS;
  for (int64_t task; (task = next_task(pool, tid, args->batch * parts)) >= 0;) {
    const int64_t sequence = task / parts, begin = task % parts * ELU_TASK_ELEMENTS;
    const int64_t end = begin + ELU_TASK_ELEMENTS < args->count ? begin + ELU_TASK_ELEMENTS : args->count;
    const float *x = args->x + sequence * args->count;
    float *y = args->y + sequence * (args->offset + args->count) + args->offset;
    for (int64_t i = begin; i < end; i += LANES) {
      const int64_t lanes = end - i < LANES ? end - i : LANES;
      f32x16 v = {0};
      memcpy(&v, x + i, lanes * sizeof v[0]);
      v = vselect(v > 0.0f, v, vexp(v) - 1.0f);
      memcpy(y + i, &v, lanes * sizeof v[0]);
    }
  }
  barrier(pool);
}

/* ---- overlap-add */

typedef struct {
  const float *products; /* [batch][times][2][stride][channels] */
  const float *bias;     /* [channels] */
  float *tail;           /* [batch][stride][channels] */
  float *y;              /* [batch][times][stride][channels] */
  int64_t batch, times, stride, channels;
} OverlapAddArgs;

static void overlap_add_work(ThreadPool *pool, int tid, void *call_args) {
  const OverlapAddArgs *args = call_args;
  const int64_t row = args->stride * args->channels;
  for (int64_t task; (task = next_task(pool, tid, args->batch * args->times)) >= 0;) {
    const int64_t sequence = task / args->times, time = task % args->times;
    const float *current = args->products + 2 * task * row;
    const float *previous = time ? current - row : args->tail + sequence * row;
    for (int64_t i = 0; i < args->stride; i++)
      for (int64_t c = 0; c < args->channels; c++) {
        const int64_t index = i * args->channels + c;
        args->y[task * row + index] = current[index] + previous[index] + args->bias[c];
      }
  }
  barrier(pool);
  for (int64_t s; (s = next_task(pool, tid, args->batch)) >= 0;)
    memcpy(args->tail + s * row, args->products + (2 * (s + 1) * args->times - 1) * row, row * sizeof(float));
  barrier(pool);
}

/* ---- functions that Python calls (declared in bindings.py) */

/* A pool of up to `size` threads, the calling one included; NULL if there is no memory. */
ThreadPool *thread_pool_new(int64_t size) { return pool_open((int)size); }

/* Ends the threads and frees the pool. No call may be running. */
void thread_pool_free(ThreadPool *pool) { pool_close(pool); }

/* Sizes of structures in bytes, in the order of bindings.py, which compares them with its own. A 0 ends the list. */
const int64_t *codec_layout(void) {
  static const int64_t sizes[] = {sizeof(PackedConv1d), sizeof(PackedLstm), 0};
  return sizes;
}

/* A convolution without padding.
 *
 * x: [batch, times, inputs]. y: [batch, times - (taps - 1) * dilation, outputs], written.
 */
void codec_conv1d(ThreadPool *pool, const PackedConv1d *conv, const float *x, int64_t batch, int64_t times, float *y) {
  ConvArgs args = {conv, x, y, batch, times};
  run_on_all(pool, conv_work, &args);
}

/* An LSTM layer over the next frames of each sequence.
 *
 * x: [batch, times, units]. gates: [batch, times, 4 * units] of scratch memory. hidden: [2, batch, units]; the first half is
 * the state, updated, the second half scratch memory. cell: [batch, units] the state, updated. y: [batch, times, units],
 * written.
 */
void codec_lstm(ThreadPool *pool, const PackedLstm *lstm, const float *x, int64_t batch, int64_t times, float *gates,
                float *hidden, float *cell, float *y) {
  const int64_t units = lstm->input.inputs;
  LstmArgs args = {lstm, {&lstm->input, x, gates, batch, times}, units, gates, y, hidden, cell};
  run_on_all(pool, lstm_work, &args);
  if (times % 2) memcpy(hidden, hidden + batch * units, batch * units * sizeof *hidden);
}

/* ELU with alpha 1.
 *
 * x: [batch, count]. y: [batch, offset + count]; the first `offset` numbers of each sequence stay, the others are written.
 */
void codec_elu(ThreadPool *pool, const float *x, int64_t batch, int64_t count, int64_t offset, float *y) {
  EluArgs args = {x, y, batch, count, offset};
  run_on_all(pool, elu_work, &args);
}

/* The overlapping sums of a transposed convolution whose kernel is two strides long.
 *
 * products: [batch, times, 2, stride, channels] the products of each frame. bias: [channels]. tail: [batch, stride,
 * channels] the second half of the last frame; read, then updated. y: [batch, times * stride, channels], written.
 */
void codec_overlap_add(ThreadPool *pool, const float *products, const float *bias, int64_t batch, int64_t times,
                       int64_t stride, int64_t channels, float *tail, float *y) {
  OverlapAddArgs args = {products, bias, tail, y, batch, times, stride, channels};
  run_on_all(pool, overlap_add_work, &args);
}

/* Packs the weights of a convolution.
 *
 * weight: [outputs, inputs, taps]. packed: [round_up(outputs, 16) * inputs * taps] of zeros, written; see PackedConv1d.
 */
void codec_pack_conv1d(const float *weight, int64_t outputs, int64_t inputs, int64_t taps, float *packed) {
  for (int64_t o = 0; o < outputs; o++) {
    const float *row = weight + o * inputs * taps;
    float *to = packed + o / LANES * LANES * inputs * taps + o % LANES;
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = 0; i < inputs; i++) to[(tap * inputs + i) * LANES] = row[i * taps + tap];
  }
}
