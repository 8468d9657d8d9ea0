/* Matrix products for few rows: float32 activations times an int8 or a float32 matrix.
 *
 * An int8 matrix holds one byte a weight and one scale an output. Activations are quantized row by row to 16 bits in two
 * int8 parts: `hi` is the rounded value, `lo` the remainder in 1/254 of a step. Sums are integers, and the float operations
 * before and after treat each row alone, so a row's result does not depend on the other rows.
 *
 * Weights of 16 outputs are stored together: int8 as [inputs / 4][16][4], which is what `dot4` reads and what AMX calls a
 * tile; float32 as [inputs][16].
 */
#pragma once

#include "simd.h"

#define INT8_MAX_LEVEL 127.0f /* the largest magnitude of an int8 part */
#define LO_LEVELS 254.0f      /* steps of the lo part in one step of the hi part */
#define INT8_ROW_TILE 4       /* rows at once without AMX; the sums of their two parts stay in registers */
#define F32_ROW_TILE 8        /* rows at once for a float32 matrix */
#define K_BLOCK 64            /* inputs of a line that are contiguous; one row of an AMX tile */
#define TILE_LINES 16         /* lines in an AMX tile */
#define MAX_TILES 4           /* AMX tiles of sums at once */
#define AMX_COL_GROUPS 2      /* groups of 16 outputs that AMX computes together: rows are read half as often */
#define AMX_K_SPAN 256        /* inputs at a time: 64 lines of 256 bytes are a third of the first-level cache */

typedef struct {
  const void *packed;      /* int8: [outputs / 16][inputs / 4][16][4]; float32: [outputs / 16][inputs][16] */
  const float *scales;     /* [outputs]; NULL: float32 */
  int64_t outputs, inputs; /* outputs: a multiple of LANES; inputs of an int8 matrix: a multiple of K_BLOCK */
} Matrix;

typedef struct {
  const float *weight, *bias; /* [width] each */
} Norm;

/* The rows of a product. For a float32 matrix they stay floats. For an int8 matrix row r becomes line 2 r (hi) and line
 * 2 r + 1 (lo). */
typedef struct {
  float *floats;     /* [rows][inputs]; for an int8 matrix: scratch for normalized rows before quantization */
  int8_t *parts;     /* [inputs / K_BLOCK][num_lines][K_BLOCK] */
  int64_t num_lines; /* 2 * rows; with AMX rounded up to TILE_LINES */
  int32_t *sums;     /* [2 * rows] sum of a line's numbers, times ZERO_POINT */
  float *scales;     /* [rows]; NaN if the row is not finite */
} QuantizedRows;

/* Where a product goes: out[row][output]. */
typedef struct {
  float *out;
  int64_t width; /* numbers from one row of `out` to the next */
  enum { SET, ADD, GELU } epilogue;
  const int32_t *rows; /* index in `out` of each row; NULL: 0, 1, 2, ... */
} GemmOutput;

/* The address of number i of a line. */
static inline int8_t *line_at(const QuantizedRows *x, int64_t line, int64_t i) {
  return x->parts + (i / K_BLOCK * x->num_lines + line) * K_BLOCK + i % K_BLOCK;
}

/* Quantizes 16 numbers of at most INT8_MAX_LEVEL to a hi and a lo part, and adds the parts to their sums. */
static inline void quantize_hi_lo(f32x16 v, int8_t *hi, int8_t *lo, i32x16 *hi_sum, i32x16 *lo_sum) {
  const f32x16 whole = round_even(v);
  const i32x16 hi32 = __builtin_convertvector(whole, i32x16);
  const i32x16 lo32 = __builtin_convertvector(round_even((v - whole) * LO_LEVELS), i32x16);
  *hi_sum += hi32;
  *lo_sum += lo32;
  const i8x16 hi8 = __builtin_convertvector(hi32, i8x16), lo8 = __builtin_convertvector(lo32, i8x16);
  memcpy(hi, &hi8, sizeof hi8);
  memcpy(lo, &lo8, sizeof lo8);
}

/* Quantizes x [width] to row `row` of `to`, padded with zeros to `inputs` numbers. If a number is not finite, the row's
 * scale is NaN. */
static void quantize_activations(const float *x, int64_t width, int64_t inputs, QuantizedRows *to, int row) {
  f32x16 abs_max = {0}, nonfinite = {0}; /* nonfinite: a sum of zeros, which turns NaN */
  for (int64_t i = 0; i < width; i += LANES) {
    const f32x16 v = load(x + i);
    abs_max = vmax(vabs(v), abs_max);
    nonfinite += v * 0.0f;
  }
  const float row_max = hmax(abs_max), scale = row_max / INT8_MAX_LEVEL;
  const f32x16 inverse_scale = splat(row_max > 0 ? INT8_MAX_LEVEL / row_max : 0);
  i32x16 hi_sum = {0}, lo_sum = {0};
  for (int64_t i = 0; i < inputs; i += LANES) {
    int8_t *hi = line_at(to, 2 * row, i);
    quantize_hi_lo(i < width ? load(x + i) * inverse_scale : splat(0), hi, hi + K_BLOCK, &hi_sum, &lo_sum);
  }
  to->sums[2 * row] = ZERO_POINT * hsum_i32(hi_sum);
  to->sums[2 * row + 1] = ZERO_POINT * hsum_i32(lo_sum);
  to->scales[row] = scale + hsum(nonfinite);
}

/* Layer norm with eps 1e-5: x [width] -> y [width]. */
static void layer_norm(const float *x, const Norm *norm, int64_t width, float *y) {
  f32x16 sum = {0}, squares = {0};
  for (int64_t i = 0; i < width; i += LANES) sum += load(x + i);
  const f32x16 mean = splat(hsum(sum) / width);
  for (int64_t i = 0; i < width; i += LANES) {
    const f32x16 v = load(x + i) - mean;
    squares += v * v;
  }
  const f32x16 inverse_deviation = splat(1.0f / __builtin_sqrtf(hsum(squares) / width + 1e-5f));
  for (int64_t i = 0; i < width; i += LANES)
    store(y + i, (load(x + i) - mean) * inverse_deviation * load(norm->weight + i) + load(norm->bias + i));
}

/* Writes 16 outputs y of a row. */
static inline void put_outputs(const GemmOutput *to, int64_t output, int row, f32x16 y) {
  float *out = to->out + (to->rows ? to->rows[row] : row) * to->width + output;
  if (to->epilogue == ADD)
    store(out, load(out) + y);
  else
    store(out, to->epilogue == GELU ? gelu(y) : y);
}

/* Writes 16 outputs of a row from the integer sums of its hi and lo parts. */
static inline void dequantize_outputs(const GemmOutput *to, const QuantizedRows *x, f32x16 scales, int64_t output, int row,
                                      i32x16 hi_sum, i32x16 lo_sum) {
  const f32x16 hi = __builtin_convertvector(hi_sum - x->sums[2 * row], f32x16);
  const f32x16 lo = __builtin_convertvector(lo_sum - x->sums[2 * row + 1], f32x16);
  put_outputs(to, output, row, (hi + lo * (1.0f / LO_LEVELS)) * (scales * x->scales[row]));
}

/* 16 outputs of `rows` rows from row `first`, float32. `rows` is a compile-time constant at each call. */
__attribute__((always_inline)) static inline void gemm_f32_rows(
    const Matrix *m, const QuantizedRows *x, const GemmOutput *to, int64_t output, int first, const int rows) {
  f32x16 sums[F32_ROW_TILE] = {{0}};
  const float *w = (const float *)m->packed + output * m->inputs;
  const float *row = x->floats + first * m->inputs;
  for (int64_t i = 0; i < m->inputs; i++, w += LANES) {
    prefetch(w);
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; r++) sums[r] += load(w) * row[r * m->inputs + i];
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++) put_outputs(to, output, first + r, sums[r]);
}

/* 16 outputs of `rows` rows from row `first`, int8. `rows` is a compile-time constant at each call. */
__attribute__((always_inline)) static inline void gemm_int8_rows(
    const Matrix *m, const QuantizedRows *x, const GemmOutput *to, int64_t output, int first, const int rows) {
  i32x16 sums[2 * INT8_ROW_TILE] = {{0}}; /* by line: hi and lo of each row */
  const uint8_t *w = (const uint8_t *)m->packed + output * m->inputs;
  __builtin_prefetch(m->scales + output + LANES);
  for (int64_t block = 0; block < m->inputs; block += K_BLOCK) {
    const int8_t *lines = line_at(x, 2 * first, block);
    for (int64_t i = 0; i < K_BLOCK; i += 4, w += 4 * LANES) {
      prefetch(w);
#pragma clang loop unroll(full)
      for (int r = 0; r < 2 * rows; r++) {
        int32_t four;
        memcpy(&four, lines + r * K_BLOCK + i, sizeof four);
        sums[r] = dot4(sums[r], w, four);
      }
    }
  }
  const f32x16 scales = load(m->scales + output);
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++) dequantize_outputs(to, x, scales, output, first + r, sums[2 * r], sums[2 * r + 1]);
}

#if defined(__AVX512VNNI__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the processor has AMX for int8 and the system lets this process use it. */
static int has_amx(void) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 /* AMX-TILE, AMX-INT8 */ &&
         syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILE_DATA */) == 0;
}

/* Configures the calling thread's eight tiles: 16 lines of 64 bytes each. */
__attribute__((target("amx-tile"))) static void amx_begin(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = 64;
    config.rows[i] = TILE_LINES;
  }
  _tile_loadconfig(&config);
}

__attribute__((target("amx-tile"))) static void amx_end(void) { _tile_release(); }

/* Memory to prefetch in small portions: weights of a later task, which may never be read and may lie beyond the matrix.
 * Activations come from the second-level cache meanwhile. Their reads wait behind prefetches, so only a few cache lines are
 * prefetched at a time. */
typedef struct {
  const uint8_t *at, *end;
} PrefetchCursor;

static inline void prefetch_some(PrefetchCursor *cursor, int64_t cache_lines) {
  if (cursor->at >= cursor->end) return;
  for (int64_t i = 0; i < cache_lines; i++, cursor->at += 64) {
    __builtin_prefetch(cursor->at, 0, 2);
    __asm__ volatile("" ::: "memory");
  }
}

/* Operations on sum tile n, skipped where the rows need fewer tiles. They are macros because the AMX intrinsics take tile
 * numbers as literals. Tiles 0 to 3 hold sums, tile 4 weights, tiles 5 to 7 activations in turn. */
#define ZERO_SUMS(n) if (tiles > n) _tile_zero(n)
#define LOAD_SUMS(n) if (tiles > n) _tile_loadd(n, group_sums[n * TILE_LINES], 64)
#define STORE_SUMS(n) if (tiles > n) _tile_stored(n, group_sums[n * TILE_LINES], 64)
#define ADD_PRODUCTS(n)                                                \
  if (tiles > n) {                                                     \
    _tile_loadd(5 + n % 3, lines + n * TILE_LINES * K_BLOCK, K_BLOCK); \
    _tile_dpbsud(n, 5 + n % 3, 4);                                     \
  }

/* `groups` (at most AMX_COL_GROUPS) times 16 outputs of all rows by AMX, MAX_TILES * TILE_LINES / 2 rows at a time.
 *
 * next_weights: what the thread reads in its next task; it is prefetched meanwhile.
 */
__attribute__((target("amx-tile,amx-int8"))) static void gemm_int8_amx(
    const Matrix *m, const QuantizedRows *x, const GemmOutput *to, int64_t output, int groups, int rows,
    const uint8_t *next_weights) {
  const uint8_t *packed = (const uint8_t *)m->packed + output * m->inputs;
  PrefetchCursor cursor = {next_weights, next_weights + groups * LANES * m->inputs};
  for (int first = 0; first < rows; first += MAX_TILES * TILE_LINES / 2) {
    const int count = rows - first < MAX_TILES * TILE_LINES / 2 ? rows - first : MAX_TILES * TILE_LINES / 2;
    const int tiles = (2 * count + TILE_LINES - 1) / TILE_LINES;
    _Alignas(64) int32_t sums[AMX_COL_GROUPS][MAX_TILES * TILE_LINES][LANES];
    for (int64_t begin = 0; begin < m->inputs; begin += AMX_K_SPAN) {
      const int64_t end = begin + AMX_K_SPAN < m->inputs ? begin + AMX_K_SPAN : m->inputs;
      for (int group = 0; group < groups; group++) {
        const uint8_t *w = packed + group * LANES * m->inputs;
        int32_t(*group_sums)[LANES] = sums[group];
        if (begin) {
          LOAD_SUMS(0); LOAD_SUMS(1); LOAD_SUMS(2); LOAD_SUMS(3);
        } else {
          ZERO_SUMS(0); ZERO_SUMS(1); ZERO_SUMS(2); ZERO_SUMS(3);
        }
        for (int64_t i = begin; i < end; i += K_BLOCK) { /* reads 16 cache lines of weights and prefetches 12 */
          const int8_t *lines = line_at(x, 2 * first, i);
          _tile_loadd(4, w + i * LANES, 64);
          prefetch_some(&cursor, 3); ADD_PRODUCTS(0);
          prefetch_some(&cursor, 3); ADD_PRODUCTS(1);
          prefetch_some(&cursor, 3); ADD_PRODUCTS(2);
          prefetch_some(&cursor, 3); ADD_PRODUCTS(3);
        }
        STORE_SUMS(0); STORE_SUMS(1); STORE_SUMS(2); STORE_SUMS(3);
      }
    }
    const int64_t cache_lines_per_sum = (cursor.end - cursor.at) / 64 / (groups * count) + 1;
    for (int group = 0; group < groups; group++) {
      const f32x16 scales = load(m->scales + output + group * LANES);
      for (int r = 0; r < count; r++) {
        i32x16 hi_sum, lo_sum;
        memcpy(&hi_sum, sums[group][2 * r], sizeof hi_sum);
        memcpy(&lo_sum, sums[group][2 * r + 1], sizeof lo_sum);
        prefetch_some(&cursor, cache_lines_per_sum);
        dequantize_outputs(to, x, scales, output + group * LANES, first + r, hi_sum, lo_sum);
      }
    }
  }
}
#else
static int has_amx(void) { return 0; }
static void amx_begin(void) {}
static void amx_end(void) {}
static void gemm_int8_amx(
    const Matrix *m, const QuantizedRows *x, const GemmOutput *to, int64_t output, int groups, int rows,
    const uint8_t *next_weights) {
  (void)m;
  (void)x;
  (void)to;
  (void)output;
  (void)groups;
  (void)rows;
  (void)next_weights;
}
#endif

/* 16 outputs (columns) of all rows, without AMX. */
static void gemm_cols(const Matrix *m, const QuantizedRows *x, const GemmOutput *to, int64_t output, int rows) {
  int first = 0;
  if (!m->scales) {
    for (; rows - first >= F32_ROW_TILE; first += F32_ROW_TILE) gemm_f32_rows(m, x, to, output, first, F32_ROW_TILE);
    for (; rows - first >= 2; first += 2) gemm_f32_rows(m, x, to, output, first, 2);
    if (first < rows) gemm_f32_rows(m, x, to, output, first, 1);
    return;
  }
  for (; rows - first >= INT8_ROW_TILE; first += INT8_ROW_TILE) gemm_int8_rows(m, x, to, output, first, INT8_ROW_TILE);
  if (rows - first == 3) gemm_int8_rows(m, x, to, output, first, 3);
  if (rows - first == 2) gemm_int8_rows(m, x, to, output, first, 2);
  if (rows - first == 1) gemm_int8_rows(m, x, to, output, first, 1);
}
