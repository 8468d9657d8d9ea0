/* The language model's forward pass on a CPU: any rows, each the next position of some clip, through all layers.
 *
 * Pre-norm transformer layers without biases, as AudioCraft's. All threads go through the same phases; in each they take
 * parts until none is left, and meet before the next.
 */
#include "attention.h"
#include "folded.h"
#include "product.h"
#include "sampling.h"
#include "team.h"

typedef struct {
  Norm norm1;
  Matrix query_key_value, out;
  Norm norm_cross;
  Matrix query, key_value, out_cross; /* outputs 0: no cross-attention */
  Norm norm2;
  Matrix linear1, linear2;
} Layer;

typedef struct {
  int64_t dim, hidden, heads, layers;
  const Layer *layer;
  Norm out_norm;
  Matrix logits;
  int64_t codebooks, card;
  const float *embeddings; /* [codebooks][card + 1][dim] */
  const float *places;     /* [positions][dim] */
} Model;

/* The next position of a clip that hears its prompt, or of one that does not. */
typedef struct {
  uint8_t *const *own;   /* blocks of its past, with room for this position */
  uint8_t *const *heard; /* blocks of its prompt; NULL: it hears none, or */
  const uint8_t *folded; /* a short one, and this is what became of it */
  int64_t position, heard_length;
} Row;

/* One step of a clip: what it reads, and how it is to be drawn from what the model says. */
typedef struct {
  uint8_t *const *own[2]; /* of the row that hears the prompt, and of the one that does not; NULL: there is none */
  uint8_t *const *heard;
  const uint8_t *folded;
  int64_t heard_length, position;
  uint64_t seed, key;
  int64_t top_k;
  float temperature, top_p, cfg_coef;
} Clip;

/* What the first thread's time goes to; waiting is for the others, and waking for the system to wake them. */
enum { WAKING, NORMS, PRODUCTS, KEEPING, ATTENTION, SAMPLING, WAITING, KINDS };

typedef struct {
  Model model;
  Team *team;
  int tiles, floats;
  int64_t most; /* rows at once */
  float *x, *wide, *found; /* [most] of dim; the widest; dim */
  Parts parts;
  int32_t *hearing, *short_hearing; /* [most] */
  Row *row;         /* [most], of a step: one of each clip, then the second ones */
  int32_t *second;  /* [clips], of a step: each clip's second row, or -1 */
  float *said;      /* [most][outputs], of a step; and as much to work in */
  /* of the piece of work at hand */
  const Row *rows;
  int64_t count; /* rows */
  int64_t hears; /* of them hear a prompt; of a prompt itself, the position of the first */
  int64_t hears_short, longest; /* of them hear one that is folded, of at most so many tokens */
  float *logits;
  const float *text;
  uint8_t *const *prompt; /* NULL: it is folded */
  uint8_t *folding;
  float *unpacked; /* of each thread, to fold in */
  const Clip *clips; /* NULL: rows come with their inputs, and no token is drawn */
  int64_t clip_count;
  const int64_t *tokens; /* [clips][codebooks] */
  int64_t *drawn;
  int64_t spent[KINDS], now; /* nanoseconds */
} Decoder;

static int64_t widest(const Model *m) { return m->hidden > 3 * m->dim ? m->hidden : 3 * m->dim; }

static inline void count_time(Decoder *d, int me, int kind) {
  if (me) return;
  const int64_t now = nanoseconds();
  d->spent[kind] += now - d->now;
  d->now = now;
}

/* A phase of this kind is over. */
static void over(Decoder *d, int me, int kind) {
  count_time(d, me, kind);
  meet(d->team);
  count_time(d, me, WAITING);
}

/* Rows of x, normed where there is a norm, for a product with `m`. `which`: of x, or NULL. */
static void prepare(Decoder *d, int me, const float *x, int64_t width, const Norm *norm, const Matrix *m, int64_t count,
                    const int32_t *which) {
  for (int64_t i; (i = take(d->team, me, count)) >= 0;) {
    const float *row = x + (which ? which[i] : i) * width;
    float *floats = d->parts.floats + i * width;
    if (norm)
      normed(row, norm, width, floats);
    else if (d->floats)
      memcpy(floats, row, width * sizeof *row);
    if (!d->floats) divide(norm ? floats : row, width, m->inputs, &d->parts, (int)i);
  }
  over(d, me, NORMS);
}

/* Where a thread's share of a matrix begins, if it is taken so many sixteens of outputs at once. */
static const uint8_t *share_begin(const Decoder *d, int me, const Matrix *m, int64_t at_once) {
  const int64_t first = share_of(d->team, me, up(m->outputs / LANES, at_once) / at_once) * at_once * LANES * m->inputs;
  return (const uint8_t *)m->packed + first * (d->floats ? sizeof(float) : 1);
}

/* Ask for the beginning of a thread's share of the matrix that will be multiplied with next. */
static void ask_next(const Decoder *d, int me, const Matrix *next) {
  const uint8_t *begin = share_begin(d, me, next, 1);
  for (int64_t i = 0; i < FAR; i += 64) __builtin_prefetch(begin + i);
}

/* Few rows are multiplied without tiles. */
static int by_tiles(const Decoder *d, int64_t count) { return d->tiles && count > AT_ONCE; }

/* With its last part a thread asks for its first of the next matrix, as if that had many rows too and nobody was late. */
static void multiply_by_tiles(Decoder *d, int me, const Matrix *m, int64_t count, const Result *to, const Matrix *next) {
  const int64_t groups = m->outputs / LANES, tasks = up(groups, GROUPS) / GROUPS;
  const int64_t last = share_of(d->team, me + 1, tasks) - 1;
  for (int64_t task; (task = take(d->team, me, tasks)) >= 0;) {
    const int64_t group = task * GROUPS, some = groups - group < GROUPS ? groups - group : GROUPS;
    const uint8_t *following = (const uint8_t *)m->packed + (group + some) * LANES * m->inputs;
    all_rows(m, &d->parts, to, group * LANES, (int)some, (int)count,
             task == last ? share_begin(d, me, next, GROUPS) : following);
  }
}

/* All of `m`; the next one is asked for. */
static void multiply(Decoder *d, int me, const Matrix *m, int64_t count, Result to, const Matrix *next) {
  if (by_tiles(d, count)) {
    multiply_by_tiles(d, me, m, count, &to, next);
  } else {
    for (int64_t group; (group = take(d->team, me, m->outputs / LANES)) >= 0;)
      outputs(m, &d->parts, &to, group * LANES, (int)count);
    ask_next(d, me, next);
  }
  over(d, me, PRODUCTS);
}

static int64_t unit_of(const Decoder *d, int64_t layer, int64_t head) {
  const Model *m = &d->model;
  return (layer * m->heads + head) * unit_bytes(m->dim / m->heads, d->floats);
}

/* The first unit that a row attends to in a layer's head. */
static const uint8_t *first_unit(uint8_t *const *blocks, int64_t at) { return blocks[0] + at; }

static Folded folded_of(const Decoder *d, const Row *row, int64_t layer) {
  return folded(row->folded, layer, d->model.dim, d->model.heads, row->heard_length);
}

static void self_attention(Decoder *d, int me, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layer[index];
  const int64_t dim = m->dim, head_dim = dim / m->heads, tasks = d->count * m->heads;
  prepare(d, me, d->x, dim, &layer->norm1, &layer->query_key_value, d->count, NULL);
  multiply(d, me, &layer->query_key_value, d->count, (Result){d->wide, 3 * dim, SET, NULL}, &layer->out);
  for (int64_t task; (task = take(d->team, me, tasks)) >= 0;) {
    const int64_t row = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    if (!d->floats)
      expect(d->rows[next / m->heads].own, unit_of(d, index, next % m->heads), d->rows[next / m->heads].position, head_dim);
    const float *key = d->wide + row * 3 * dim + dim + head * head_dim;
    keep(d->rows[row].own, unit_of(d, index, head), d->rows[row].position, head_dim, d->floats, key, key + dim);
  }
  const int64_t first = share_of(d->team, me, tasks);
  if (first < tasks) expect_unit(first_unit(d->rows[first / m->heads].own, unit_of(d, index, first % m->heads)), head_dim);
  over(d, me, KEEPING);
  for (int64_t task; (task = take(d->team, me, tasks)) >= 0;) {
    const int64_t row = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    attend(d->rows[row].own, unit_of(d, index, head), d->rows[row].position + 1, head_dim, d->floats,
           d->wide + row * 3 * dim + head * head_dim, d->found + row * dim + head * head_dim,
           first_unit(d->rows[next / m->heads].own, unit_of(d, index, next % m->heads)));
  }
  over(d, me, ATTENTION);
  prepare(d, me, d->found, dim, NULL, &layer->out, d->count, NULL);
  Folded own;
  if (d->hears_short) own = folded_of(d, &d->rows[d->short_hearing[0]], index);
  const Matrix *next = d->hears ? &layer->query : d->hears_short ? &own.scores : &layer->linear1;
  multiply(d, me, &layer->out, d->count, (Result){d->x, dim, ADD, NULL}, next);
}

static void cross_attention(Decoder *d, int me, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layer[index];
  const int64_t dim = m->dim, head_dim = dim / m->heads, tasks = d->hears * m->heads;
  prepare(d, me, d->x, dim, &layer->norm_cross, &layer->query, d->hears, d->hearing);
  multiply(d, me, &layer->query, d->hears, (Result){d->wide, dim, SET, NULL}, &layer->out_cross);
  for (int64_t task; (task = take(d->team, me, tasks)) >= 0;) {
    const int64_t row = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    const Row *of = &d->rows[d->hearing[row]];
    attend(of->heard, unit_of(d, index, head), of->heard_length, head_dim, d->floats,
           d->wide + row * dim + head * head_dim, d->found + row * dim + head * head_dim,
           first_unit(d->rows[d->hearing[next / m->heads]].heard, unit_of(d, index, next % m->heads)));
  }
  over(d, me, ATTENTION);
  prepare(d, me, d->found, dim, NULL, &layer->out_cross, d->hears, NULL);
  multiply(d, me, &layer->out_cross, d->hears, (Result){d->x, dim, ADD, d->hearing}, &layer->linear1);
}

/* Products of rows with matrices of their own: `heard`, or the scores. */
static void multiply_own(Decoder *d, int me, int64_t index, int heard, Result to, const Matrix *next) {
  const int64_t some = heard ? 4 : 1; /* of sixteen outputs, which are few bytes where they are what is heard */
  const int64_t outputs = heard ? d->model.dim : d->model.heads * d->longest;
  const int64_t tasks = up(outputs, some * LANES) / (some * LANES);
  for (int64_t task; (task = take(d->team, me, d->hears_short * tasks)) >= 0;) {
    const int64_t row = task / tasks;
    const Folded own = folded_of(d, &d->rows[d->short_hearing[row]], index);
    const Matrix *m = heard ? &own.heard : &own.scores;
    for (int64_t group = task % tasks * some, i = 0; i < some && (group + i) * LANES < m->outputs; i++)
      some_rows(m, &d->parts, &to, (group + i) * LANES, (int)row, 1);
  }
  ask_next(d, me, next);
  over(d, me, PRODUCTS);
}

/* Cross-attention of those whose prompt is folded. */
static void short_attention(Decoder *d, int me, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layer[index];
  const int64_t width = widest(m);
  prepare(d, me, d->x, m->dim, &layer->norm_cross, &layer->query, d->hears_short, d->short_hearing);
  const Folded first = folded_of(d, &d->rows[d->short_hearing[0]], index);
  multiply_own(d, me, index, 0, (Result){d->wide, width, SET, NULL}, &first.heard);
  for (int64_t row; (row = take(d->team, me, d->hears_short)) >= 0;) {
    const int64_t tokens = d->rows[d->short_hearing[row]].heard_length;
    float *scores = d->wide + row * width;
    soften(scores, m->heads, tokens);
    divide(scores, up(m->heads * tokens, LANES), up(m->heads * tokens, DEPTH), &d->parts, (int)row);
  }
  over(d, me, NORMS);
  multiply_own(d, me, index, 1, (Result){d->x, m->dim, ADD, d->short_hearing}, &layer->linear1);
}

static void feed_forward(Decoder *d, int me, const Layer *layer, const Matrix *next) {
  const Model *m = &d->model;
  prepare(d, me, d->x, m->dim, &layer->norm2, &layer->linear1, d->count, NULL);
  multiply(d, me, &layer->linear1, d->count, (Result){d->wide, m->hidden, GELU, NULL}, &layer->linear2);
  prepare(d, me, d->wide, m->hidden, NULL, &layer->linear2, d->count, NULL);
  multiply(d, me, &layer->linear2, d->count, (Result){d->x, m->dim, ADD, NULL}, next);
}

/* How many rows the next phases are about. */
static void gather(Decoder *d, int64_t count) {
  d->count = count;
  d->parts.lines = by_tiles(d, count) ? up(2 * count, TILE) : 2 * count;
}

/* The rows of the clips' tokens. */
static void embed(Decoder *d, int me) {
  const Model *m = &d->model;
  for (int64_t clip; (clip = take(d->team, me, d->clip_count)) >= 0;) {
    float *x = d->x + clip * m->dim;
    memcpy(x, m->places + d->clips[clip].position * m->dim, m->dim * sizeof *x);
    for (int64_t k = 0; k < m->codebooks; k++) {
      const float *embedding = m->embeddings + (k * (m->card + 1) + d->tokens[clip * m->codebooks + k]) * m->dim;
      for (int64_t i = 0; i < m->dim; i += LANES) store(x + i, load(x + i) + load(embedding + i));
    }
    if (d->second[clip] >= 0) memcpy(d->x + d->second[clip] * m->dim, x, m->dim * sizeof *x);
  }
  over(d, me, NORMS);
}

/* Guided logits to tokens. */
static void draw(Decoder *d, int me) {
  const Model *m = &d->model;
  for (int64_t task; (task = take(d->team, me, d->clip_count * m->codebooks)) >= 0;) {
    const int64_t clip = task / m->codebooks, first = task % m->codebooks * m->card, width = m->logits.outputs;
    const Clip *of = &d->clips[clip];
    float *x = d->said + clip * width + first;
    if (d->second[clip] >= 0) {
      const float *deaf = d->said + d->second[clip] * width + first;
      for (int64_t i = 0; i < m->card; i++) x[i] = deaf[i] + (x[i] - deaf[i]) * of->cfg_coef;
    }
    const Drawing by = {of->temperature, of->top_p, of->top_k, of->seed, of->key};
    d->drawn[task] = drawn(x, d->said + d->most * width + clip * width + first, m->card, first, &by);
  }
  over(d, me, SAMPLING);
}

static void forward(Team *team, int me, void *with) {
  Decoder *d = with;
  const Model *m = &d->model;
  meet(team);
  count_time(d, me, WAKING);
  if (d->clips) embed(d, me);
  if (d->tiles) tiles_begin();
  for (int64_t index = 0; index < m->layers; index++) {
    self_attention(d, me, index);
    if (d->hears) cross_attention(d, me, index);
    if (d->hears_short) short_attention(d, me, index);
    feed_forward(d, me, &m->layer[index], index + 1 < m->layers ? &m->layer[index + 1].query_key_value : &m->logits);
  }
  if (d->logits) {
    prepare(d, me, d->x, m->dim, &m->out_norm, &m->logits, d->count, NULL);
    multiply(d, me, &m->logits, d->count, (Result){d->logits, m->logits.outputs, SET, NULL}, &m->layer[0].query_key_value);
  }
  if (d->tiles) tiles_end();
  if (d->clips) draw(d, me);
}

/* The prompt whose keys and values are in `wide`, for a layer. */
static void fold(Decoder *d, int me, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layer[index];
  const Folded to = folded(d->folding, index, m->dim, m->heads, d->count);
  const float *keys = d->wide, *values = keys + m->dim;
  float *unpacked = d->unpacked + me * folding_room(m->dim, m->heads);
  for (int64_t task; (task = take(d->team, me, m->heads + m->dim / LANES)) >= 0;)
    if (task < m->heads)
      fold_scores(&layer->query, keys, 2 * m->dim, m->dim, m->heads, d->count, task, &to.scores, unpacked);
    else
      fold_heard(&layer->out_cross, values, 2 * m->dim, m->dim, m->heads, d->count, (task - m->heads) * LANES, &to.heard,
                 unpacked);
}

static void remember_prompt(Team *team, int me, void *with) {
  Decoder *d = with;
  const Model *m = &d->model;
  const int64_t dim = m->dim, head_dim = dim / m->heads;
  if (d->tiles) tiles_begin();
  for (int64_t index = 0; index < m->layers; index++) {
    const Matrix *matrix = &m->layer[index].key_value;
    prepare(d, me, d->text, dim, NULL, matrix, d->count, NULL);
    multiply(d, me, matrix, d->count, (Result){d->wide, 2 * dim, SET, NULL}, matrix);
    if (d->prompt)
      for (int64_t task; (task = take(team, me, d->count * m->heads)) >= 0;) {
        const int64_t row = task / m->heads, head = task % m->heads;
        const float *key = d->wide + row * 2 * dim + head * head_dim;
        keep(d->prompt, unit_of(d, index, head), d->hears + row, head_dim, d->floats, key, key + dim);
      }
    else
      fold(d, me, index);
    over(d, me, KEEPING);
  }
  if (d->tiles) tiles_end();
}

/* ---- what Python calls */

void decoder_close(Decoder *d) {
  free(d->x), free(d->wide), free(d->found), free(d->hearing), free(d->short_hearing);
  free(d->row), free(d->second), free(d->said);
  free(d->parts.floats), free(d->parts.parts), free(d->parts.sums), free(d->parts.scales);
  free(d);
}

/* NULL: there is no memory for it. */
Decoder *decoder_open(const Model *model, int64_t most, Team *team) {
  Decoder *d = room(sizeof *d);
  if (!d) return NULL;
  const int64_t lines = up(2 * most, TILE);
  d->model = *model, d->most = most;
  d->floats = !model->logits.scales, d->tiles = !d->floats && has_tiles();
  d->x = room(most * model->dim * sizeof(float));
  d->wide = room(most * widest(model) * sizeof(float));
  d->found = room(most * model->dim * sizeof(float));
  d->hearing = room(most * sizeof(int32_t)), d->short_hearing = room(most * sizeof(int32_t));
  d->parts = (Parts){room(most * widest(model) * sizeof(float)), room(lines * (widest(model) + DEPTH)), lines,
                     room(lines * sizeof(int32_t)), room(most * sizeof(float))};
  d->row = room(most * sizeof(Row));
  d->second = room(most * sizeof(int32_t));
  d->said = room(2 * most * model->logits.outputs * sizeof(float));
  d->team = team;
  if (d->x && d->wide && d->found && d->hearing && d->short_hearing && d->row && d->second && d->said &&
      d->parts.floats && d->parts.parts && d->parts.sums && d->parts.scales)
    return d;
  decoder_close(d);
  return NULL;
}

/* What Python has too, in the order of kernel.py: sizes of structures, and the tokens of a short prompt. 0 ends it. */
const int64_t *decoder_layout(void) {
  static const int64_t sizes[] = {sizeof(Matrix), sizeof(Norm), sizeof(Layer), sizeof(Model),
                                  sizeof(Clip),   sizeof(Row),  SHORT,         0};
  return sizes;
}

/* Bytes of a block of keys and values. */
int64_t decoder_block(const Decoder *d) {
  return d->model.layers * d->model.heads * unit_bytes(d->model.dim / d->model.heads, d->floats);
}

static void run(Decoder *d, const Row *rows, int64_t count, float *logits) {
  gather(d, count);
  d->rows = rows, d->logits = logits, d->hears = 0, d->hears_short = 0, d->longest = 0;
  for (int64_t i = 0; i < count; i++) {
    if (rows[i].heard) d->hearing[d->hears++] = (int32_t)i;
    if (!rows[i].folded) continue;
    d->short_hearing[d->hears_short++] = (int32_t)i;
    if (rows[i].heard_length > d->longest) d->longest = rows[i].heard_length;
  }
  d->now = nanoseconds();
  together(d->team, forward, d);
}

/* x [count, dim], the rows' inputs -> logits [count, outputs], or none where that is NULL. Positions of one clip may
 * come together, in their order. At most `most` rows. */
void decoder_forward(Decoder *d, const Row *rows, int64_t count, const float *x, float *logits) {
  memcpy(d->x, x, count * d->model.dim * sizeof *x);
  d->clips = NULL;
  run(d, rows, count, logits);
}

/* A step of clips: tokens [clips, codebooks] -> the next ones, -1 of each codebook whose logits are not finite. At most
 * `most` rows. */
void decoder_draw(Decoder *d, const Clip *clips, int64_t count, const int64_t *tokens, int64_t *drawn) {
  int64_t rows = count;
  for (int64_t i = 0; i < count; i++) {
    const Clip *of = &clips[i];
    d->row[i] = (Row){of->own[0], of->heard, of->folded, of->position, of->heard_length};
    d->second[i] = of->own[1] ? (int32_t)rows : -1;
    if (of->own[1]) d->row[rows++] = (Row){of->own[1], NULL, NULL, of->position, 0};
  }
  d->clips = clips, d->clip_count = count, d->tokens = tokens, d->drawn = drawn;
  run(d, d->row, rows, d->said);
}

/* Keys and values of a prompt, text [count, dim], into blocks with room for them. */
void decoder_prompt(Decoder *d, const float *text, int64_t count, uint8_t *const *blocks) {
  d->prompt = blocks;
  for (int64_t done = 0; done < count; done += d->most) {
    d->text = text + done * d->model.dim, d->hears = done;
    gather(d, count - done < d->most ? count - done : d->most);
    d->now = nanoseconds();
    together(d->team, remember_prompt, d);
  }
}

/* Bytes of a folded prompt. */
int64_t decoder_folded(const Decoder *d, int64_t tokens) {
  return d->model.layers * folded_bytes(d->model.dim, d->model.heads, tokens);
}

/* A prompt, text [count, dim], of at most SHORT tokens, folded into memory of zeros; 0 where there is no memory to do it.
 * For a model in bytes. */
int64_t decoder_fold(Decoder *d, const float *text, int64_t count, uint8_t *memory) {
  d->unpacked = room(d->team->size * folding_room(d->model.dim, d->model.heads) * sizeof(float));
  if (!d->unpacked) return 0;
  d->prompt = NULL, d->folding = memory, d->text = text;
  gather(d, count);
  d->now = nanoseconds();
  together(d->team, remember_prompt, d);
  free(d->unpacked);
  return 1;
}

/* Nanoseconds [KINDS] since this was asked last. */
void decoder_spent(Decoder *d, int64_t *spent) {
  memcpy(spent, d->spent, sizeof d->spent);
  memset(d->spent, 0, sizeof d->spent);
}

typedef struct {
  const uint8_t *memory;
  int64_t bytes;
  atomic_int_fast64_t sum;
} Reading;

static void read_work(Team *team, int me, void *with) {
  Reading *work = with;
  const int64_t part = 1 << 16;
  I sum = {0};
  for (int64_t at; (at = take(team, me, work->bytes / part)) >= 0;)
    for (const uint8_t *from = work->memory + at * part, *end = from + part; from < end; from += sizeof(I)) {
      I next;
      ask(from);
      memcpy(&next, from, sizeof next);
      sum += next;
    }
  atomic_fetch_add(&work->sum, total_of_integers(sum));
  meet(team);
}

/* Read memory once, as matrices are read: what a step can be measured against. */
int64_t kernel_read(Team *team, const uint8_t *memory, int64_t bytes) {
  Reading work = {memory, bytes, 0};
  together(team, read_work, &work);
  return work.sum;
}

typedef struct {
  const float *matrix;
  int64_t outputs, width, inputs;
  void *packed;
  float *scales;
} Packing;

static void pack_floats(const Packing *work, int64_t output) {
  const float *row = work->matrix + output * work->width;
  float *to = (float *)work->packed + output / LANES * LANES * work->inputs + output % LANES;
  for (int64_t i = 0; i < work->width; i++) to[i * LANES] = row[i];
}

static void pack_bytes(const Packing *work, int64_t output) {
  const float *row = work->matrix + output * work->width;
  uint8_t *to = (uint8_t *)work->packed + output / LANES * LANES * work->inputs + output % LANES * 4;
  for (int64_t i = 0; i < work->width; i += WIDEST) {
    const int64_t count = work->width - i < WIDEST ? work->width - i : WIDEST;
    int8_t bytes[WIDEST];
    to_bytes(row + i, count, work->scales[output], bytes);
    for (int64_t j = 0; j < count; j += 4) keep_four(to + (i + j) * LANES, bytes + j);
  }
}

static void pack_work(Team *team, int me, void *with) {
  const Packing *work = with;
  for (int64_t output; (output = take(team, me, work->outputs)) >= 0;) {
    if (work->scales) {
      work->scales[output] = scale_of(work->matrix + output * work->width, work->width);
      pack_bytes(work, output);
    } else
      pack_floats(work, output);
  }
  meet(team);
}

/* Some rows of a matrix, float32 [outputs, width], as they are multiplied with; `scales` NULL: as floats. */
void matrix_pack(Team *team, const float *matrix, int64_t outputs, int64_t width, int64_t inputs, void *packed,
                 float *scales) {
  Packing work = {matrix, outputs, width, inputs, packed, scales};
  together(team, pack_work, &work);
}
