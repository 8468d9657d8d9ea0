/* What EnCodec's decoder is made of, in float32, time before channels: convolutions of stride 1, ELU, and an LSTM.
 *
 * All of what an LSTM does with what it heard before is read anew for each frame, so that it is kept in 16 bits: beside
 * float32 its sound differs by some millionths.
 *
 * Every sum is made in one order, whatever it is beside: a clip's samples are the same in any company, and in blocks of
 * any length. (Clips shorter than the padding are not the kernel's.)
 */
#include "simd.h"
#include "team.h"

#if defined(__AVX512F__)
#define ROWS 12 /* whose sums are kept in registers, for PAIR times sixteen outputs */
#define PAIR 2
#else
#define ROWS 3
#define PAIR 1
#endif
#define MANY (8 * ROWS)  /* rows of a task */
#define STAYS (256 << 10) /* bytes of a matrix that stay near while rows go by */
#define HIDDEN 4 /* clips at once, of an LSTM */

typedef struct {
  const float *packed; /* [outputs / 16][taps * inputs][16] */
  const float *bias;   /* [outputs / 16 * 16] */
  int64_t inputs, outputs, taps, dilation;
} Convolution;

/* One layer; `units` come in sixteens, of each the four gates: [units / 16][4][16]. */
typedef struct {
  const int16_t *packed; /* [units / 16][units][4][16]: with what was heard before */
  const float *scales;   /* [units / 16][4][16], of these */
  Convolution input;     /* of one tap, to [4 * units], with the bias of both */
} Recurrence;

typedef struct {
  const Convolution *of;
  const float *x;
  float *y;
  int64_t clips, times; /* of x */
} Convolving;

__attribute__((always_inline)) static inline void convolve_rows(
    const Convolution *of, const float *x, float *y, int64_t output, const int rows, const int pair) {
  const int64_t depth = of->taps * of->inputs;
  const float *w = of->packed + output * depth;
  F sums[ROWS * PAIR] = {{0}};
  for (int64_t tap = 0; tap < of->taps; tap++) {
    const float *from = x + tap * of->dilation * of->inputs;
    for (int64_t i = 0; i < of->inputs; i++, w += LANES) {
      const F first = load(w), second = pair > 1 ? load(w + depth * LANES) : first;
      ask(w);
      if (pair > 1) ask(w + depth * LANES);
#pragma clang loop unroll(full)
      for (int r = 0; r < rows; r++) {
        const F value = all(from[r * of->inputs + i]);
        sums[r] += first * value;
        if (pair > 1) sums[ROWS + r] += second * value;
      }
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++)
    for (int p = 0; p < pair; p++) {
      const int64_t begin = output + p * LANES, left = of->outputs - begin;
      const F made = sums[p * ROWS + r] + load(of->bias + begin);
      float *to = y + r * of->outputs + begin;
      if (left >= LANES)
        store(to, made);
      else
        memcpy(to, &made, left * sizeof *to);
    }
}

#define WHILE(some)                                                                 \
  for (; rows >= some; rows -= some, x += some * of->inputs, y += some * of->outputs) \
    convolve_rows(of, x, y, output, some, pair);

/* `rows` of one clip, for sixteen outputs or two times as many. */
__attribute__((always_inline)) static inline void convolve_pair(
    const Convolution *of, const float *x, float *y, int64_t output, int64_t rows, const int pair) {
  WHILE(ROWS)
#if ROWS > 4
  WHILE(4)
#endif
  WHILE(1)
}

static void convolve_some(const Convolution *of, const float *x, float *y, int64_t output, int64_t rows, int pair) {
  if (pair > 1)
    convolve_pair(of, x, y, output, rows, PAIR);
  else
    convolve_pair(of, x, y, output, rows, 1);
}

static void convolve_phase(Team *team, int me, const Convolving *work) {
  const Convolution *of = work->of;
  const int64_t span = (of->taps - 1) * of->dilation, rows = work->times - span;
  const int64_t parts = (rows + MANY - 1) / MANY, all_parts = parts * work->clips;
  const int64_t groups = (of->outputs + PAIR * LANES - 1) / (PAIR * LANES);
  const int near = groups * PAIR * LANES * of->taps * of->inputs * (int64_t)sizeof(float) <= STAYS;
  for (int64_t task; (task = take(team, me, groups * all_parts)) >= 0;) {
    const int64_t part = near ? task / groups : task % all_parts, group = near ? task % groups : task / all_parts;
    const int64_t clip = part / parts, begin = part % parts * MANY, output = group * PAIR * LANES;
    const int64_t some = rows - begin < MANY ? rows - begin : MANY;
    convolve_some(of, work->x + (clip * work->times + begin) * of->inputs,
                  work->y + (clip * rows + begin) * of->outputs, output, some,
                  PAIR > 1 && of->outputs - output > LANES ? PAIR : 1);
  }
  meet(team);
}

static void convolve_work(Team *team, int me, void *with) { convolve_phase(team, me, with); }

typedef struct {
  const Recurrence *of;
  Convolving input;
  int64_t units;
  float *gates;  /* [clips][times][4 * units] */
  float *y;      /* [clips][times][units] */
  float *hidden; /* [2][clips][units] */
  float *cell;   /* [clips][units] */
} Recurring;

static inline F sigmoid(F x) { return 1.0f / (1.0f + exponential(-x)); }

static inline F hyperbolic(F x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

/* Sixteen units of a few clips, one step. */
__attribute__((always_inline)) static inline void recur_some(
    const Recurring *work, int64_t unit, int64_t time, int64_t first, const int clips) {
  const int64_t units = work->units, count = work->input.clips, times = work->input.times;
  const int16_t *w = work->of->packed + 4 * unit * units;
  const float *before = work->hidden + (time % 2 * count + first) * units;
  F sums[4 * HIDDEN] = {{0}};
  for (int64_t i = 0; i < units; i++) {
#pragma clang loop unroll(full)
    for (int gate = 0; gate < 4; gate++, w += LANES) {
      H numbers;
      memcpy(&numbers, w, sizeof numbers);
      const F row = __builtin_convertvector(numbers, F);
      if (gate % 2 == 0) ask(w);
#pragma clang loop unroll(full)
      for (int clip = 0; clip < clips; clip++) sums[gate * HIDDEN + clip] += row * before[clip * units + i];
    }
  }
  for (int clip = 0; clip < clips; clip++) {
    const int64_t row = (first + clip) * times + time;
    F gate[4];
    for (int i = 0; i < 4; i++)
      gate[i] = sums[i * HIDDEN + clip] * load(work->of->scales + 4 * unit + i * LANES) +
                load(work->gates + row * 4 * units + 4 * unit + i * LANES);
    float *cell = work->cell + (first + clip) * units + unit;
    const F next = sigmoid(gate[1]) * load(cell) + sigmoid(gate[0]) * hyperbolic(gate[2]);
    const F heard = sigmoid(gate[3]) * hyperbolic(next);
    store(cell, next);
    store(work->hidden + ((time + 1) % 2 * count + first + clip) * units + unit, heard);
    store(work->y + row * units + unit, heard);
  }
}

static void recur_work(Team *team, int me, void *with) {
  const Recurring *work = with;
  const int64_t clips = work->input.clips;
  convolve_phase(team, me, &work->input);
  for (int64_t time = 0; time < work->input.times; time++) {
    for (int64_t task; (task = take(team, me, work->units / LANES)) >= 0;) {
      int64_t first = 0;
      for (; clips - first >= HIDDEN; first += HIDDEN) recur_some(work, task * LANES, time, first, HIDDEN);
      for (; first < clips; first++) recur_some(work, task * LANES, time, first, 1);
    }
    meet(team);
  }
}

typedef struct {
  const float *x;
  float *y;
  int64_t clips, count, before; /* numbers of a clip, and of what there is before each of y's */
} Activating;

#define STRETCH 4096

static void elu_work(Team *team, int me, void *with) {
  const Activating *work = with;
  const int64_t parts = (work->count + STRETCH - 1) / STRETCH;
  for (int64_t task; (task = take(team, me, work->clips * parts)) >= 0;) {
    const int64_t clip = task / parts, begin = task % parts * STRETCH;
    const int64_t end = begin + STRETCH < work->count ? begin + STRETCH : work->count;
    const float *x = work->x + clip * work->count;
    float *y = work->y + clip * (work->before + work->count) + work->before;
    for (int64_t i = begin; i < end; i += LANES) {
      const int64_t left = end - i < LANES ? end - i : LANES;
      F v = {0};
      memcpy(&v, x + i, left * sizeof v[0]);
      v = choose(v > 0.0f, v, exponential(v) - 1.0f);
      memcpy(y + i, &v, left * sizeof v[0]);
    }
  }
  meet(team);
}

typedef struct {
  const float *products; /* [clips][times][2][stride][channels] */
  const float *bias;     /* [channels] */
  float *tail;           /* [clips][stride][channels] */
  float *y;              /* [clips][times][stride][channels] */
  int64_t clips, times, stride, channels;
} Overlapping;

static void overlap_work(Team *team, int me, void *with) {
  const Overlapping *work = with;
  const int64_t row = work->stride * work->channels;
  for (int64_t task; (task = take(team, me, work->clips * work->times)) >= 0;) {
    const int64_t clip = task / work->times, time = task % work->times;
    const float *now = work->products + 2 * task * row;
    const float *late = time ? now - row : work->tail + clip * row;
    for (int64_t i = 0; i < work->stride; i++)
      for (int64_t c = 0; c < work->channels; c++) {
        const int64_t at = i * work->channels + c;
        work->y[task * row + at] = now[at] + late[at] + work->bias[c];
      }
  }
  meet(team);
  for (int64_t clip; (clip = take(team, me, work->clips)) >= 0;)
    memcpy(work->tail + clip * row, work->products + (2 * (clip + 1) * work->times - 1) * row, row * sizeof(float));
  meet(team);
}

/* ---- what Python calls */

Team *team_new(int64_t size) { return team_open((int)size); }

void team_free(Team *team) { team_close(team); }

/* Sizes of the structures that Python has too, in the order of kernel.py. 0 ends it. */
const int64_t *codec_layout(void) {
  static const int64_t sizes[] = {sizeof(Convolution), sizeof(Recurrence), 0};
  return sizes;
}

/* x [clips][times][inputs] -> y [clips][times - (taps - 1) * dilation][outputs] */
void codec_convolve(Team *team, const Convolution *of, const float *x, int64_t clips, int64_t times, float *y) {
  Convolving work = {of, x, y, clips, times};
  together(team, convolve_work, &work);
}

/* x [clips][times][units] -> y, the same size. `gates` [clips][times][4 * units] and hidden's second half are room to
 * work in; hidden [2][clips][units] and cell [clips][units] go on from the last call. */
void codec_recur(Team *team, const Recurrence *of, const float *x, int64_t clips, int64_t times, float *gates,
                 float *hidden, float *cell, float *y) {
  const int64_t units = of->input.inputs;
  Recurring work = {of, {&of->input, x, gates, clips, times}, units, gates, y, hidden, cell};
  together(team, recur_work, &work);
  if (times % 2) memcpy(hidden, hidden + clips * units, clips * units * sizeof *hidden);
}

/* x [clips][count] -> y [clips][before + count], of which the first ones of each stay as they are. */
void codec_elu(Team *team, const float *x, int64_t clips, int64_t count, int64_t before, float *y) {
  Activating work = {x, y, clips, count, before};
  together(team, elu_work, &work);
}

/* A transposed convolution's products, each of two strides, [clips][times][2][stride][channels] -> their overlapping
 * sums y [clips][times * stride][channels]; tail [clips][stride][channels] is the last call's, and this one's then. */
void codec_overlap(Team *team, const float *products, const float *bias, int64_t clips, int64_t times, int64_t stride,
                   int64_t channels, float *tail, float *y) {
  Overlapping work = {products, bias, tail, y, clips, times, stride, channels};
  together(team, overlap_work, &work);
}

/* Weights [outputs][inputs][taps] -> packed. */
void codec_pack(const float *weight, int64_t outputs, int64_t inputs, int64_t taps, float *packed) {
  for (int64_t o = 0; o < outputs; o++) {
    const float *row = weight + o * inputs * taps;
    float *to = packed + o / LANES * LANES * inputs * taps + o % LANES;
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = 0; i < inputs; i++) to[(tap * inputs + i) * LANES] = row[i * taps + tap];
  }
}
