/* Rows with a matrix, as whole numbers or as floats.
 *
 * In bytes a matrix has a byte a number and a scale for each of its rows, the outputs. What it is multiplied with has sixteen
 * bits in two parts of eight: a row, rounded, and what the rounding left over. Sums are of whole numbers, and what is
 * done with floats before and after is done row by row: a row's result does not depend on the others.
 *
 * Sixteen outputs lie together, [inputs / 4][16][4], which is what a step of `dot4` reads, and what AMX calls a tile. Of
 * floats it is [inputs][16].
 */
#pragma once

#include "simd.h"

#define LEVELS 127.0f /* of a byte, either way */
#define FINER 254.0f  /* as many levels of the second part make one of the first */
#define AT_ONCE 4     /* rows, of two parts each: their sums are kept in registers */
#define FLOATS 8      /* rows of floats at once */
#define DEPTH 64      /* numbers of a line that lie together */
#define TILE 16       /* lines of one */
#define TILES 4       /* of sums at once */
#define GROUPS 2      /* sixteens of outputs made at once by tiles: rows are fetched half as often */
#define SPAN 256      /* inputs of all rows at a time: 64 lines of as many bytes are a third of the first cache */

typedef struct {
  const void *packed;  /* [outputs / 16][inputs / 4][16][4] bytes, or [outputs / 16][inputs][16] floats */
  const float *scales; /* [outputs]; NULL: floats */
  int64_t outputs, inputs; /* multiples of LANES, and in bytes of DEPTH */
} Matrix;

typedef struct {
  const float *weight, *bias; /* [width] */
} Norm;

/* Rows of a product: as they are for a matrix of floats; for one of bytes in two parts, lines 2 r and 2 r + 1. Sixteen
 * lines of DEPTH numbers are a tile. */
typedef struct {
  float *floats; /* [rows][inputs]; of bytes normed rows, before they are divided */
  int8_t *parts; /* [inputs / DEPTH][lines][DEPTH] */
  int64_t lines; /* 2 * rows; a multiple of TILE where there are tiles */
  int32_t *sums; /* [2 * rows] of the numbers in a part, times MIDDLE */
  float *scales; /* [rows] */
} Parts;

/* What becomes of a product: out[row][output], of which there are `width`. */
typedef struct {
  float *out;
  int64_t width;
  enum { SET, ADD, GELU } how;
  const int32_t *rows; /* where in `out` each row goes; NULL: where it is */
} Result;

/* Where number `i` of a line is. */
static inline int8_t *line(const Parts *of, int64_t number, int64_t i) {
  return of->parts + (i / DEPTH * of->lines + number) * DEPTH + i % DEPTH;
}

/* Sixteen numbers of at most LEVELS in two parts; the parts are summed too. */
static inline void split(F v, int8_t *coarse, int8_t *fine, I *coarse_sum, I *fine_sum) {
  const F whole = nearest(v);
  const I c = __builtin_convertvector(whole, I), f = __builtin_convertvector(nearest((v - whole) * FINER), I);
  *coarse_sum += c, *fine_sum += f;
  const C cs = __builtin_convertvector(c, C), fs = __builtin_convertvector(f, C);
  memcpy(coarse, &cs, sizeof cs);
  memcpy(fine, &fs, sizeof fs);
}

/* x [width] -> row `row` of parts that are `inputs` long. What is not finite makes the scale NaN. */
static void divide(const float *x, int64_t width, int64_t inputs, Parts *to, int row) {
  F most = {0}, sum = {0};
  for (int64_t i = 0; i < width; i += LANES) {
    const F v = load(x + i);
    most = larger(magnitude(v), most);
    sum += v * 0.0f;
  }
  const float top = largest(most), scale = top / LEVELS;
  const F per = all(top > 0 ? LEVELS / top : 0);
  I coarse_sum = {0}, fine_sum = {0};
  for (int64_t i = 0; i < inputs; i += LANES) {
    int8_t *coarse = line(to, 2 * row, i);
    split(i < width ? load(x + i) * per : all(0), coarse, coarse + DEPTH, &coarse_sum, &fine_sum);
  }
  to->sums[2 * row] = MIDDLE * total_of_integers(coarse_sum);
  to->sums[2 * row + 1] = MIDDLE * total_of_integers(fine_sum);
  to->scales[row] = scale + total(sum);
}

/* Layer norm, eps 1e-5: x [width] -> y [width]. */
static void normed(const float *x, const Norm *norm, int64_t width, float *y) {
  F sum = {0}, squares = {0};
  for (int64_t i = 0; i < width; i += LANES) sum += load(x + i);
  const F mean = all(total(sum) / width);
  for (int64_t i = 0; i < width; i += LANES) {
    const F v = load(x + i) - mean;
    squares += v * v;
  }
  const F shrink = all(1.0f / __builtin_sqrtf(total(squares) / width + 1e-5f));
  for (int64_t i = 0; i < width; i += LANES)
    store(y + i, (load(x + i) - mean) * shrink * load(norm->weight + i) + load(norm->bias + i));
}

/* Sixteen outputs of a row. */
static inline void put(const Result *to, int64_t output, int row, F y) {
  float *out = to->out + (to->rows ? to->rows[row] : row) * to->width + output;
  if (to->how == ADD)
    store(out, load(out) + y);
  else
    store(out, to->how == GELU ? gelu(y) : y);
}

/* The same from the sums of its parts. */
static inline void finish(const Result *to, const Parts *of, F scales, int64_t output, int row, I c, I f) {
  const F coarse = __builtin_convertvector(c - of->sums[2 * row], F);
  const F fine = __builtin_convertvector(f - of->sums[2 * row + 1], F);
  put(to, output, row, (coarse + fine * (1.0f / FINER)) * (scales * of->scales[row]));
}

__attribute__((always_inline)) static inline void some_floats(
    const Matrix *m, const Parts *of, const Result *to, int64_t output, int first, const int rows) {
  F sums[FLOATS] = {{0}};
  const float *w = (const float *)m->packed + output * m->inputs;
  const float *x = of->floats + first * m->inputs;
  for (int64_t i = 0; i < m->inputs; i++, w += LANES) {
    ask(w);
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; r++) sums[r] += load(w) * x[r * m->inputs + i];
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++) put(to, output, first + r, sums[r]);
}

__attribute__((always_inline)) static inline void some_rows(
    const Matrix *m, const Parts *of, const Result *to, int64_t output, int first, const int rows) {
  I sums[2 * AT_ONCE] = {{0}};
  const uint8_t *w = (const uint8_t *)m->packed + output * m->inputs;
  __builtin_prefetch(m->scales + output + LANES);
  for (int64_t block = 0; block < m->inputs; block += DEPTH) {
    const int8_t *x = line(of, 2 * first, block);
    for (int64_t i = 0; i < DEPTH; i += 4, w += 4 * LANES) {
      ask(w);
#pragma clang loop unroll(full)
      for (int r = 0; r < 2 * rows; r++) {
        int32_t four;
        memcpy(&four, x + r * DEPTH + i, sizeof four);
        sums[r] = dot4(sums[r], w, four);
      }
    }
  }
  const F scales = load(m->scales + output);
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++) finish(to, of, scales, output, first + r, sums[2 * r], sums[2 * r + 1]);
}

#if defined(__AVX512VNNI__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static int has_tiles(void) { /* and the system lets this process use them */
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 /* AMX-TILE, AMX-INT8 */ &&
         syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tiles' data */) == 0;
}

__attribute__((target("amx-tile"))) static void tiles_begin(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = TILE;
  _tile_loadconfig(&config);
}

__attribute__((target("amx-tile"))) static void tiles_end(void) { _tile_release(); }

/* Memory that will be read later, or never: it may lie beyond the matrix. Rows come from the second cache meanwhile, and
 * wait behind what is asked for, so it is a few lines at a time. */
typedef struct {
  const uint8_t *at, *end;
} Later;

static inline void ask_later(Later *later, int64_t lines) {
  if (later->at >= later->end) return;
  for (int64_t i = 0; i < lines; i++, later->at += 64) {
    __builtin_prefetch(later->at, 0, 2);
    __asm__ volatile("" ::: "memory");
  }
}

#define ZERO(n) if (tiles > n) _tile_zero(n)
#define FROM(n) if (tiles > n) _tile_loadd(n, own[n * TILE], 64)
#define SUM(n) if (tiles > n) _tile_loadd(5 + n % 3, x + n * TILE * DEPTH, DEPTH), _tile_dpbsud(n, 5 + n % 3, 4)
#define OUT(n) if (tiles > n) _tile_stored(n, own[n * TILE], 64)

/* Up to GROUPS times sixteen outputs of any number of rows, TILES * TILE / 2 at a time. */
__attribute__((target("amx-tile,amx-int8"))) static void all_rows(
    const Matrix *m, const Parts *of, const Result *to, int64_t output, int groups, int rows, const uint8_t *after) {
  const uint8_t *packed = (const uint8_t *)m->packed + output * m->inputs;
  Later later = {after, after + groups * LANES * m->inputs};
  for (int first = 0; first < rows; first += TILES * TILE / 2) {
    const int some = rows - first < TILES * TILE / 2 ? rows - first : TILES * TILE / 2;
    const int tiles = (2 * some + TILE - 1) / TILE;
    _Alignas(64) int32_t sums[GROUPS][TILES * TILE][LANES];
    for (int64_t begin = 0; begin < m->inputs; begin += SPAN) {
      const int64_t end = begin + SPAN < m->inputs ? begin + SPAN : m->inputs;
      for (int group = 0; group < groups; group++) {
        const uint8_t *w = packed + group * LANES * m->inputs;
        int32_t(*own)[LANES] = sums[group];
        if (begin) {
          FROM(0); FROM(1); FROM(2); FROM(3);
        } else {
          ZERO(0); ZERO(1); ZERO(2); ZERO(3);
        }
        for (int64_t i = begin; i < end; i += DEPTH) { /* reads sixteen lines of memory, and asks for twelve */
          const int8_t *x = line(of, 2 * first, i);
          _tile_loadd(4, w + i * LANES, 64);
          ask_later(&later, 3); SUM(0);
          ask_later(&later, 3); SUM(1);
          ask_later(&later, 3); SUM(2);
          ask_later(&later, 3); SUM(3);
        }
        OUT(0); OUT(1); OUT(2); OUT(3);
      }
    }
    const int64_t rest = (later.end - later.at) / 64 / (groups * some) + 1; /* lines, with each sum */
    for (int group = 0; group < groups; group++) {
      const F scales = load(m->scales + output + group * LANES);
      for (int r = 0; r < some; r++) {
        I c, f;
        memcpy(&c, sums[group][2 * r], sizeof c);
        memcpy(&f, sums[group][2 * r + 1], sizeof f);
        ask_later(&later, rest);
        finish(to, of, scales, output + group * LANES, first + r, c, f);
      }
    }
  }
}
#else
static int has_tiles(void) { return 0; }
static void tiles_begin(void) {}
static void tiles_end(void) {}
static void all_rows(
    const Matrix *m, const Parts *of, const Result *to, int64_t output, int groups, int rows, const uint8_t *after) {
  (void)m, (void)of, (void)to, (void)output, (void)groups, (void)rows, (void)after;
}
#endif

/* Sixteen outputs of all rows, without tiles. */
static void outputs(const Matrix *m, const Parts *of, const Result *to, int64_t output, int rows) {
  int first = 0;
  if (!m->scales) {
    for (; rows - first >= FLOATS; first += FLOATS) some_floats(m, of, to, output, first, FLOATS);
    for (; rows - first >= 2; first += 2) some_floats(m, of, to, output, first, 2);
    if (first < rows) some_floats(m, of, to, output, first, 1);
    return;
  }
  for (; rows - first >= AT_ONCE; first += AT_ONCE) some_rows(m, of, to, output, first, AT_ONCE);
  if (rows - first == 3) some_rows(m, of, to, output, first, 3);
  if (rows - first == 2) some_rows(m, of, to, output, first, 2);
  if (rows - first == 1) some_rows(m, of, to, output, first, 1);
}
