/* One step of the language model on a CPU: rows, each the next position of a sequence, through all layers.
 *
 * The layers are pre-norm transformer layers without biases, as AudioCraft's. A step is a series of phases. In each phase all
 * threads run tasks until no task remains, then wait for each other at a barrier.
 */
#include "attention.h"
#include "gemm.h"
#include "prompt_fusion.h"
#include "sampling.h"
#include "thread_pool.h"

/* The weights of one transformer layer. */
typedef struct {
  Norm norm1;
  Matrix query_key_value, out; /* [3 * dim, dim], [dim, dim] */
  Norm norm_cross;
  Matrix query, key_value, out_cross; /* [dim, dim], [2 * dim, dim], [dim, dim]; outputs 0: no cross-attention */
  Norm norm2;
  Matrix linear1, linear2; /* [hidden, dim], [dim, hidden] */
} Layer;

typedef struct {
  int64_t dim, hidden, heads, num_layers;
  const Layer *layers; /* [num_layers] */
  Norm out_norm;
  Matrix logits; /* [codebooks * codebook_size, dim] */
  int64_t codebooks, codebook_size;
  const float *embeddings;     /* [codebooks][codebook_size + 1][dim] */
  const float *pos_embeddings; /* [positions][dim] */
} Model;

/* One row of a batch: the next position of a sequence, conditional or unconditional. */
typedef struct {
  uint8_t *const *self_kv;     /* block table of the row's past; it has a block for this position */
  uint8_t *const *cross_kv;    /* block table of the prompt; NULL: an unconditional row, or a fused prompt */
  const uint8_t *fused_prompt; /* NULL: none */
  int64_t position, prompt_tokens;
} BatchRow;

/* One step of a sequence: what it reads, and how its tokens are sampled. */
typedef struct {
  uint8_t *const *self_kv[2]; /* block tables of the conditional and the unconditional row; NULL: no such row */
  uint8_t *const *cross_kv;
  const uint8_t *fused_prompt;
  int64_t prompt_tokens, position;
  uint64_t seed, noise_step;
  int64_t top_k;
  float temperature, top_p, cfg_coef;
} SequenceStep;

/* The categories of the calling thread's time. WAKEUP: until the system has woken the workers. WAITING: at barriers. */
enum { WAKEUP, NORMS, PRODUCTS, KV_WRITE, ATTENTION, SAMPLING, WAITING, NUM_PHASES };

typedef struct {
  /* ---- for the decoder's lifetime */
  Model model;
  ThreadPool *pool;
  int use_amx, is_f32;
  int64_t max_rows;        /* rows of one call */
  float *x;                /* [max_rows][dim] the residual stream */
  float *ffn_buf;          /* [max_rows][widest] q, k and v; queries or scores of cross-attention; hidden units */
  float *attn_out;         /* [max_rows][dim] */
  QuantizedRows quantized; /* [max_rows] inputs of the current product; num_lines is set for each call */
  int32_t *cross_rows;     /* [max_rows] indices of the conditional rows whose prompt is not fused */
  int32_t *fused_rows;     /* [max_rows] indices of the conditional rows whose prompt is fused */
  BatchRow *step_rows;     /* [max_rows] rows of a step: one of each sequence, then the unconditional rows */
  int32_t *uncond_row;     /* [sequences] index of each sequence's unconditional row in a step, or -1 */
  float *logits_buf;       /* [2][max_rows][outputs] logits of a step, then as much scratch memory for sampling */
  /* ---- of the current call */
  struct {
    const BatchRow *rows;           /* [row_count] */
    int64_t row_count;
    int64_t num_cross_rows;         /* used entries of cross_rows */
    int64_t num_fused_rows;         /* used entries of fused_rows */
    int64_t max_prompt_tokens;      /* most tokens of their prompts */
    float *logits;                  /* [row_count][outputs]; NULL: none are computed */
    const float *prompt;            /* [row_count][dim] prompt embeddings to project */
    int64_t prompt_begin;           /* index of the first of them in the prompt */
    uint8_t *const *prompt_kv;      /* block table to store them in; NULL: they are fused */
    uint8_t *fused_prompt;          /* memory of the fused prompt */
    float *fusion_scratch;          /* [threads][fusion_scratch_floats] */
    const SequenceStep *sequences;  /* [sequence_count]; NULL: rows have inputs already, and nothing is sampled */
    int64_t sequence_count;
    const int64_t *tokens;          /* [sequence_count][codebooks] the tokens that the step reads */
    int64_t *sampled;               /* [sequence_count][codebooks] the tokens that it samples */
  } call;
  /* ---- time of the calling thread, nanoseconds */
  int64_t phase_times[NUM_PHASES]; /* sums since they were last read */
  int64_t phase_begin;
} Decoder;

/* The width of ffn_buf. */
static int64_t widest(const Model *m) { return m->hidden > 3 * m->dim ? m->hidden : 3 * m->dim; }

static inline void add_phase_time(Decoder *d, int tid, int phase) {
  if (tid) return;
  const int64_t now = now_nanoseconds();
  d->phase_times[phase] += now - d->phase_begin;
  d->phase_begin = now;
}

/* Ends a phase: waits for all threads, and counts the time. */
static void end_phase(Decoder *d, int tid, int phase) {
  add_phase_time(d, tid, phase);
  barrier(d->pool);
  add_phase_time(d, tid, WAITING);
}

/* ---- matrix products */

/* Prepares rows of x [..][width] as inputs of a product with `m`: normalized if there is a norm, quantized if m is int8.
 *
 * indices: [count] which rows of x; NULL: the first ones.
 */
static void prepare_rows(Decoder *d, int tid, const float *x, int64_t width, const Norm *norm, const Matrix *m,
                         int64_t count, const int32_t *indices) {
  for (int64_t i; (i = next_task(d->pool, tid, count)) >= 0;) {
    const float *row = x + (indices ? indices[i] : i) * width;
    float *floats = d->quantized.floats + i * width;
    if (norm)
      layer_norm(row, norm, width, floats);
    else if (d->is_f32)
      memcpy(floats, row, width * sizeof *row);
    if (!d->is_f32) quantize_activations(norm ? floats : row, width, m->inputs, &d->quantized, (int)i);
  }
  end_phase(d, tid, NORMS);
}

/* The first weights of a thread's chunk of a matrix, if a task is `groups` times 16 outputs. */
static const uint8_t *chunk_weights(const Decoder *d, int tid, const Matrix *m, int64_t groups) {
  const int64_t first =
      chunk_begin(d->pool, tid, round_up(m->outputs / LANES, groups) / groups) * groups * LANES * m->inputs;
  return (const uint8_t *)m->packed + first * (d->is_f32 ? sizeof(float) : 1);
}

/* Prefetches the first weights of the thread's chunk of the matrix of the next product. */
static void prefetch_next_matrix(const Decoder *d, int tid, const Matrix *next) {
  const uint8_t *begin = chunk_weights(d, tid, next, 1);
  for (int64_t i = 0; i < PREFETCH_L2_BYTES; i += 64) __builtin_prefetch(begin + i);
}

/* Whether so many rows are multiplied with AMX. Few rows are faster without. */
static int uses_amx(const Decoder *d, int64_t count) { return d->use_amx && count > INT8_ROW_TILE; }

/* In its last task a thread prefetches its first weights of the next matrix. It assumes that the next product uses AMX too and
 * that no thread is late. */
static void multiply_amx(Decoder *d, int tid, const Matrix *m, int64_t count, const GemmOutput *to, const Matrix *next) {
  const int64_t groups = m->outputs / LANES, tasks = round_up(groups, AMX_COL_GROUPS) / AMX_COL_GROUPS;
  const int64_t last = chunk_begin(d->pool, tid + 1, tasks) - 1;
  for (int64_t task; (task = next_task(d->pool, tid, tasks)) >= 0;) {
    const int64_t group = task * AMX_COL_GROUPS;
    const int64_t group_count = groups - group < AMX_COL_GROUPS ? groups - group : AMX_COL_GROUPS;
    const uint8_t *following = (const uint8_t *)m->packed + (group + group_count) * LANES * m->inputs;
    gemm_int8_amx(m, &d->quantized, to, group * LANES, (int)group_count, (int)count,
                  task == last ? chunk_weights(d, tid, next, AMX_COL_GROUPS) : following);
  }
}

/* Multiplies `count` prepared rows with `m`, and prefetches weights of the next matrix. */
static void multiply(Decoder *d, int tid, const Matrix *m, int64_t count, GemmOutput to, const Matrix *next) {
  if (uses_amx(d, count)) {
    multiply_amx(d, tid, m, count, &to, next);
  } else {
    for (int64_t group; (group = next_task(d->pool, tid, m->outputs / LANES)) >= 0;)
      gemm_cols(m, &d->quantized, &to, group * LANES, (int)count);
    prefetch_next_matrix(d, tid, next);
  }
  end_phase(d, tid, PRODUCTS);
}

/* ---- attention */

/* Bytes from the begin of a KV block to the head block of a layer's head. */
static int64_t head_offset(const Decoder *d, int64_t layer, int64_t head) {
  const Model *m = &d->model;
  return (layer * m->heads + head) * kv_head_block_bytes(m->dim / m->heads, d->is_f32);
}

/* The head block of a row's first positions. */
static const uint8_t *first_head_block(uint8_t *const *blocks, int64_t offset) { return blocks[0] + offset; }

/* The fused prompt of a row, in one layer. */
static FusedPrompt row_fused_prompt(const Decoder *d, const BatchRow *row, int64_t layer) {
  return fused_prompt(row->fused_prompt, layer, d->model.dim, d->model.heads, row->prompt_tokens);
}

static void self_attention(Decoder *d, int tid, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layers[index];
  const BatchRow *rows = d->call.rows;
  const int64_t count = d->call.row_count;
  const int64_t dim = m->dim, head_dim = dim / m->heads, tasks = count * m->heads;
  prepare_rows(d, tid, d->x, dim, &layer->norm1, &layer->query_key_value, count, NULL);
  multiply(d, tid, &layer->query_key_value, count, (GemmOutput){d->ffn_buf, 3 * dim, SET, NULL}, &layer->out);
  for (int64_t task; (task = next_task(d->pool, tid, tasks)) >= 0;) {
    const int64_t row = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    if (!d->is_f32)
      prefetch_kv_slot(rows[next / m->heads].self_kv, head_offset(d, index, next % m->heads),
                       rows[next / m->heads].position, head_dim);
    const float *key = d->ffn_buf + row * 3 * dim + dim + head * head_dim;
    store_kv(rows[row].self_kv, head_offset(d, index, head), rows[row].position, head_dim, d->is_f32, key, key + dim);
  }
  const int64_t first = chunk_begin(d->pool, tid, tasks);
  if (first < tasks)
    prefetch_kv_head_block(
        first_head_block(rows[first / m->heads].self_kv, head_offset(d, index, first % m->heads)), head_dim);
  end_phase(d, tid, KV_WRITE);
  for (int64_t task; (task = next_task(d->pool, tid, tasks)) >= 0;) {
    const int64_t row = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    attend(rows[row].self_kv, head_offset(d, index, head), rows[row].position + 1, head_dim, d->is_f32,
           d->ffn_buf + row * 3 * dim + head * head_dim, d->attn_out + row * dim + head * head_dim,
           first_head_block(rows[next / m->heads].self_kv, head_offset(d, index, next % m->heads)));
  }
  end_phase(d, tid, ATTENTION);
  prepare_rows(d, tid, d->attn_out, dim, NULL, &layer->out, count, NULL);
  FusedPrompt fused;
  if (d->call.num_fused_rows) fused = row_fused_prompt(d, &rows[d->fused_rows[0]], index);
  const Matrix *next =
      d->call.num_cross_rows ? &layer->query : d->call.num_fused_rows ? &fused.scores : &layer->linear1;
  multiply(d, tid, &layer->out, count, (GemmOutput){d->x, dim, ADD, NULL}, next);
}

/* Cross-attention of the conditional rows whose prompt is not fused. */
static void cross_attention(Decoder *d, int tid, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layers[index];
  const BatchRow *rows = d->call.rows;
  const int64_t count = d->call.num_cross_rows;
  const int64_t dim = m->dim, head_dim = dim / m->heads, tasks = count * m->heads;
  prepare_rows(d, tid, d->x, dim, &layer->norm_cross, &layer->query, count, d->cross_rows);
  multiply(d, tid, &layer->query, count, (GemmOutput){d->ffn_buf, dim, SET, NULL}, &layer->out_cross);
  for (int64_t task; (task = next_task(d->pool, tid, tasks)) >= 0;) {
    const int64_t i = task / m->heads, head = task % m->heads, next = task + 1 < tasks ? task + 1 : task;
    const BatchRow *row = &rows[d->cross_rows[i]];
    attend(row->cross_kv, head_offset(d, index, head), row->prompt_tokens, head_dim, d->is_f32,
           d->ffn_buf + i * dim + head * head_dim, d->attn_out + i * dim + head * head_dim,
           first_head_block(rows[d->cross_rows[next / m->heads]].cross_kv, head_offset(d, index, next % m->heads)));
  }
  end_phase(d, tid, ATTENTION);
  prepare_rows(d, tid, d->attn_out, dim, NULL, &layer->out_cross, count, NULL);
  multiply(d, tid, &layer->out_cross, count, (GemmOutput){d->x, dim, ADD, d->cross_rows}, &layer->linear1);
}

/* Multiplies each row with a matrix of its own fused prompt: the values if `values` is set, else the scores. */
static void multiply_fused(Decoder *d, int tid, int64_t index, int values, GemmOutput to, const Matrix *next) {
  const int64_t groups = values ? 4 : 1; /* 16 outputs are few bytes of the matrix of values, so a task has more */
  const int64_t outputs = values ? d->model.dim : d->model.heads * d->call.max_prompt_tokens;
  const int64_t tasks = round_up(outputs, groups * LANES) / (groups * LANES);
  for (int64_t task; (task = next_task(d->pool, tid, d->call.num_fused_rows * tasks)) >= 0;) {
    const int64_t row = task / tasks;
    const FusedPrompt fused = row_fused_prompt(d, &d->call.rows[d->fused_rows[row]], index);
    const Matrix *m = values ? &fused.values : &fused.scores;
    for (int64_t group = task % tasks * groups, i = 0; i < groups && (group + i) * LANES < m->outputs; i++)
      gemm_int8_rows(m, &d->quantized, &to, (group + i) * LANES, (int)row, 1);
  }
  prefetch_next_matrix(d, tid, next);
  end_phase(d, tid, PRODUCTS);
}

/* Cross-attention of the conditional rows whose prompt is fused. */
static void fused_cross_attention(Decoder *d, int tid, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layers[index];
  const int64_t width = widest(m), count = d->call.num_fused_rows;
  prepare_rows(d, tid, d->x, m->dim, &layer->norm_cross, &layer->query, count, d->fused_rows);
  const FusedPrompt first = row_fused_prompt(d, &d->call.rows[d->fused_rows[0]], index);
  multiply_fused(d, tid, index, 0, (GemmOutput){d->ffn_buf, width, SET, NULL}, &first.values);
  for (int64_t row; (row = next_task(d->pool, tid, count)) >= 0;) {
    const int64_t tokens = d->call.rows[d->fused_rows[row]].prompt_tokens;
    float *scores = d->ffn_buf + row * width;
    softmax_heads(scores, m->heads, tokens);
    quantize_activations(scores, round_up(m->heads * tokens, LANES), round_up(m->heads * tokens, K_BLOCK),
                         &d->quantized, (int)row);
  }
  end_phase(d, tid, NORMS);
  multiply_fused(d, tid, index, 1, (GemmOutput){d->x, m->dim, ADD, d->fused_rows}, &layer->linear1);
}

/* ---- a step */

static void feed_forward(Decoder *d, int tid, const Layer *layer, const Matrix *next) {
  const Model *m = &d->model;
  const int64_t count = d->call.row_count;
  prepare_rows(d, tid, d->x, m->dim, &layer->norm2, &layer->linear1, count, NULL);
  multiply(d, tid, &layer->linear1, count, (GemmOutput){d->ffn_buf, m->hidden, GELU, NULL}, &layer->linear2);
  prepare_rows(d, tid, d->ffn_buf, m->hidden, NULL, &layer->linear2, count, NULL);
  multiply(d, tid, &layer->linear2, count, (GemmOutput){d->x, m->dim, ADD, NULL}, next);
}

/* Sets the number of rows of the call. */
static void set_row_count(Decoder *d, int64_t count) {
  d->call.row_count = count;
  d->quantized.num_lines = uses_amx(d, count) ? round_up(2 * count, TILE_LINES) : 2 * count;
}

/* The rows' inputs from the sequences' tokens. */
static void embed_tokens(Decoder *d, int tid) {
  const Model *m = &d->model;
  for (int64_t s; (s = next_task(d->pool, tid, d->call.sequence_count)) >= 0;) {
    float *x = d->x + s * m->dim;
    memcpy(x, m->pos_embeddings + d->call.sequences[s].position * m->dim, m->dim * sizeof *x);
    for (int64_t k = 0; k < m->codebooks; k++) {
      const int64_t entry = k * (m->codebook_size + 1) + d->call.tokens[s * m->codebooks + k];
      const float *embedding = m->embeddings + entry * m->dim;
      for (int64_t i = 0; i < m->dim; i += LANES) store(x + i, load(x + i) + load(embedding + i));
    }
    if (d->uncond_row[s] >= 0) memcpy(d->x + d->uncond_row[s] * m->dim, x, m->dim * sizeof *x);
  }
  end_phase(d, tid, NORMS);
}

/* Applies guidance to the logits and samples the sequences' tokens. */
static void sample_tokens(Decoder *d, int tid) {
  const Model *m = &d->model;
  for (int64_t task; (task = next_task(d->pool, tid, d->call.sequence_count * m->codebooks)) >= 0;) {
    const int64_t s = task / m->codebooks, first = task % m->codebooks * m->codebook_size, width = m->logits.outputs;
    const SequenceStep *sequence = &d->call.sequences[s];
    float *logits = d->logits_buf + s * width + first;
    if (d->uncond_row[s] >= 0) {
      const float *uncond = d->logits_buf + d->uncond_row[s] * width + first;
      for (int64_t i = 0; i < m->codebook_size; i++)
        logits[i] = uncond[i] + (logits[i] - uncond[i]) * sequence->cfg_coef;
    }
    const SamplingParams params = {sequence->temperature, sequence->top_p, sequence->top_k, sequence->seed,
                                   sequence->noise_step};
    float *scratch = d->logits_buf + d->max_rows * width + s * width + first;
    d->call.sampled[task] = sample_token(logits, scratch, m->codebook_size, first, &params);
  }
  end_phase(d, tid, SAMPLING);
}

/* The work of one thread in a call of `decoder_forward` or `decoder_step`. */
static void forward_work(ThreadPool *pool, int tid, void *args) {
  Decoder *d = args;
  const Model *m = &d->model;
  barrier(pool);
  add_phase_time(d, tid, WAKEUP);
  if (d->call.sequences) embed_tokens(d, tid);
  if (d->use_amx) amx_begin();
  for (int64_t index = 0; index < m->num_layers; index++) {
    self_attention(d, tid, index);
    if (d->call.num_cross_rows) cross_attention(d, tid, index);
    if (d->call.num_fused_rows) fused_cross_attention(d, tid, index);
    const Matrix *next = index + 1 < m->num_layers ? &m->layers[index + 1].query_key_value : &m->logits;
    feed_forward(d, tid, &m->layers[index], next);
  }
  if (d->call.logits) {
    prepare_rows(d, tid, d->x, m->dim, &m->out_norm, &m->logits, d->call.row_count, NULL);
    multiply(d, tid, &m->logits, d->call.row_count, (GemmOutput){d->call.logits, m->logits.outputs, SET, NULL},
             &m->layers[0].query_key_value);
  }
  if (d->use_amx) amx_end();
  if (d->call.sequences) sample_tokens(d, tid);
}

/* ---- prompts */

/* Fuses the prompt whose keys and values are in `ffn_buf` with a layer's matrices. */
static void fuse_layer(Decoder *d, int tid, int64_t index) {
  const Model *m = &d->model;
  const Layer *layer = &m->layers[index];
  const int64_t tokens = d->call.row_count;
  const FusedPrompt to = fused_prompt(d->call.fused_prompt, index, m->dim, m->heads, tokens);
  const float *keys = d->ffn_buf, *values = keys + m->dim;
  float *scratch = d->call.fusion_scratch + tid * fusion_scratch_floats(m->dim, m->heads);
  for (int64_t task; (task = next_task(d->pool, tid, m->heads + m->dim / LANES)) >= 0;)
    if (task < m->heads)
      fuse_scores(&layer->query, keys, 2 * m->dim, m->dim, m->heads, tokens, task, &to.scores, scratch);
    else
      fuse_values(&layer->out_cross, values, 2 * m->dim, m->dim, m->heads, tokens, (task - m->heads) * LANES,
                  &to.values, scratch);
}

/* The work of one thread in a call of `decoder_prefill_cross_kv` or `decoder_fuse_prompt`. */
static void prompt_work(ThreadPool *pool, int tid, void *args) {
  Decoder *d = args;
  const Model *m = &d->model;
  const int64_t dim = m->dim, head_dim = dim / m->heads, count = d->call.row_count;
  if (d->use_amx) amx_begin();
  for (int64_t index = 0; index < m->num_layers; index++) {
    const Matrix *matrix = &m->layers[index].key_value;
    prepare_rows(d, tid, d->call.prompt, dim, NULL, matrix, count, NULL);
    multiply(d, tid, matrix, count, (GemmOutput){d->ffn_buf, 2 * dim, SET, NULL}, matrix);
    if (d->call.prompt_kv)
      for (int64_t task; (task = next_task(pool, tid, count * m->heads)) >= 0;) {
        const int64_t row = task / m->heads, head = task % m->heads;
        const float *key = d->ffn_buf + row * 2 * dim + head * head_dim;
        store_kv(d->call.prompt_kv, head_offset(d, index, head), d->call.prompt_begin + row, head_dim, d->is_f32, key,
                 key + dim);
      }
    else
      fuse_layer(d, tid, index);
    end_phase(d, tid, KV_WRITE);
  }
  if (d->use_amx) amx_end();
}

/* ---- functions that Python calls (declared in bindings.py) */

/* Frees a decoder. Its thread pool and its model stay. */
void decoder_close(Decoder *d) {
  free(d->x);
  free(d->ffn_buf);
  free(d->attn_out);
  free(d->cross_rows);
  free(d->fused_rows);
  free(d->step_rows);
  free(d->uncond_row);
  free(d->logits_buf);
  free(d->quantized.floats);
  free(d->quantized.parts);
  free(d->quantized.sums);
  free(d->quantized.scales);
  free(d);
}

/* A decoder for a model; NULL if there is no memory.
 *
 * model: copied, but its pointers must stay valid. max_rows: maximum number of rows of a call. pool: must outlive the
 * decoder.
 */
Decoder *decoder_open(const Model *model, int64_t max_rows, ThreadPool *pool) {
  Decoder *d = alloc_zeroed(sizeof *d);
  if (!d) return NULL;
  const int64_t lines = round_up(2 * max_rows, TILE_LINES);
  d->model = *model;
  d->max_rows = max_rows;
  d->is_f32 = !model->logits.scales;
  d->use_amx = !d->is_f32 && has_amx();
  d->x = alloc_zeroed(max_rows * model->dim * sizeof(float));
  d->ffn_buf = alloc_zeroed(max_rows * widest(model) * sizeof(float));
  d->attn_out = alloc_zeroed(max_rows * model->dim * sizeof(float));
  d->cross_rows = alloc_zeroed(max_rows * sizeof(int32_t));
  d->fused_rows = alloc_zeroed(max_rows * sizeof(int32_t));
  d->quantized = (QuantizedRows){alloc_zeroed(max_rows * widest(model) * sizeof(float)),
                                 alloc_zeroed(lines * (widest(model) + K_BLOCK)), lines,
                                 alloc_zeroed(lines * sizeof(int32_t)), alloc_zeroed(max_rows * sizeof(float))};
  d->step_rows = alloc_zeroed(max_rows * sizeof(BatchRow));
  d->uncond_row = alloc_zeroed(max_rows * sizeof(int32_t));
  d->logits_buf = alloc_zeroed(2 * max_rows * model->logits.outputs * sizeof(float));
  d->pool = pool;
  if (d->x && d->ffn_buf && d->attn_out && d->cross_rows && d->fused_rows && d->step_rows && d->uncond_row &&
      d->logits_buf && d->quantized.floats && d->quantized.parts && d->quantized.sums && d->quantized.scales)
    return d;
  decoder_close(d);
  return NULL;
}

/* Sizes of structures in bytes, then MAX_FUSED_TOKENS, in the order of bindings.py, which compares them with its own. A 0
 * ends the list. */
const int64_t *decoder_layout(void) {
  static const int64_t sizes[] = {sizeof(Matrix),       sizeof(Norm),     sizeof(Layer),    sizeof(Model),
                                  sizeof(SequenceStep), sizeof(BatchRow), MAX_FUSED_TOKENS, 0};
  return sizes;
}

static void run_forward(Decoder *d, const BatchRow *rows, int64_t count, float *logits) {
  set_row_count(d, count);
  d->call.rows = rows;
  d->call.logits = logits;
  d->call.num_cross_rows = 0;
  d->call.num_fused_rows = 0;
  d->call.max_prompt_tokens = 0;
  for (int64_t i = 0; i < count; i++) {
    if (rows[i].cross_kv) d->cross_rows[d->call.num_cross_rows++] = (int32_t)i;
    if (!rows[i].fused_prompt) continue;
    d->fused_rows[d->call.num_fused_rows++] = (int32_t)i;
    if (rows[i].prompt_tokens > d->call.max_prompt_tokens) d->call.max_prompt_tokens = rows[i].prompt_tokens;
  }
  d->phase_begin = now_nanoseconds();
  run_on_all(d->pool, forward_work, d);
}

/* Runs rows through the model and stores their keys and values.
 *
 * rows: [count], count <= max_rows; several positions of a sequence stand in ascending order. x: [count, dim] the rows'
 * inputs. logits: [count, outputs of the logits matrix], written; NULL: no logits are computed.
 */
void decoder_forward(Decoder *d, const BatchRow *rows, int64_t count, const float *x, float *logits) {
  memcpy(d->x, x, count * d->model.dim * sizeof *x);
  d->call.sequences = NULL;
  run_forward(d, rows, count, logits);
}

/* One step of several sequences, with sampling.
 *
 * sequences: [count]; their rows, one or two each, are at most max_rows. tokens: [count, codebooks] to read. sampled:
 * [count, codebooks], written: the next tokens, or -1 for a codebook whose logits are not finite.
 */
void decoder_step(Decoder *d, const SequenceStep *sequences, int64_t count, const int64_t *tokens, int64_t *sampled) {
  int64_t rows = count;
  for (int64_t i = 0; i < count; i++) {
    const SequenceStep *s = &sequences[i];
    d->step_rows[i] = (BatchRow){s->self_kv[0], s->cross_kv, s->fused_prompt, s->position, s->prompt_tokens};
    d->uncond_row[i] = s->self_kv[1] ? (int32_t)rows : -1;
    if (s->self_kv[1]) d->step_rows[rows++] = (BatchRow){s->self_kv[1], NULL, NULL, s->position, 0};
  }
  d->call.sequences = sequences;
  d->call.sequence_count = count;
  d->call.tokens = tokens;
  d->call.sampled = sampled;
  run_forward(d, d->step_rows, rows, d->logits_buf);
}

/* Stores the keys and values of a prompt.
 *
 * prompt: [count, dim] embeddings after the projection. blocks: block table with room for `count` positions.
 */
void decoder_prefill_cross_kv(Decoder *d, const float *prompt, int64_t count, uint8_t *const *blocks) {
  d->call.prompt_kv = blocks;
  for (int64_t done = 0; done < count; done += d->max_rows) {
    d->call.prompt = prompt + done * d->model.dim;
    d->call.prompt_begin = done;
    set_row_count(d, count - done < d->max_rows ? count - done : d->max_rows);
    d->phase_begin = now_nanoseconds();
    run_on_all(d->pool, prompt_work, d);
  }
}

/* Bytes of the fused prompt of `tokens` tokens, all layers. */
int64_t decoder_fused_prompt_bytes(const Decoder *d, int64_t tokens) {
  return d->model.num_layers * fused_prompt_bytes(d->model.dim, d->model.heads, tokens);
}

/* Fuses a short prompt with the cross-attention matrices of an int8 model. Returns 0 if there is no memory for it, else 1.
 *
 * prompt: [count, dim] embeddings after the projection, count <= MAX_FUSED_TOKENS. memory:
 * [decoder_fused_prompt_bytes(count)] of zeros, written.
 */
int64_t decoder_fuse_prompt(Decoder *d, const float *prompt, int64_t count, uint8_t *memory) {
  const int64_t scratch_floats = d->pool->size * fusion_scratch_floats(d->model.dim, d->model.heads);
  d->call.fusion_scratch = alloc_zeroed(scratch_floats * sizeof(float));
  if (!d->call.fusion_scratch) return 0;
  d->call.prompt_kv = NULL;
  d->call.fused_prompt = memory;
  d->call.prompt = prompt;
  set_row_count(d, count);
  d->phase_begin = now_nanoseconds();
  run_on_all(d->pool, prompt_work, d);
  free(d->call.fusion_scratch);
  return 1;
}

/* Reads and resets the time that calls have taken.
 *
 * times: [NUM_PHASES] nanoseconds of the calling thread by phase, written.
 */
void decoder_phase_times(Decoder *d, int64_t *times) {
  memcpy(times, d->phase_times, sizeof d->phase_times);
  memset(d->phase_times, 0, sizeof d->phase_times);
}

typedef struct {
  const uint8_t *memory;
  int64_t bytes;
  atomic_int_fast64_t sum;
} ReadArgs;

static void read_work(ThreadPool *pool, int tid, void *args) {
  ReadArgs *read = args;
  const int64_t task_bytes = 1 << 16;
  i32x16 sum = {0};
  for (int64_t task; (task = next_task(pool, tid, read->bytes / task_bytes)) >= 0;)
    for (const uint8_t *from = read->memory + task * task_bytes, *end = from + task_bytes; from < end;
         from += sizeof(i32x16)) {
      i32x16 next;
      prefetch(from);
      memcpy(&next, from, sizeof next);
      sum += next;
    }
  atomic_fetch_add(&read->sum, hsum_i32(sum));
  barrier(pool);
}

/* Reads memory once, with the access pattern of the products. The benchmark derives the least time of a step from it.
 *
 * memory: [bytes]; a remainder of less than 64 KiB is left out. Returns a checksum, so that the reads are not optimized
 * away.
 */
int64_t bench_read_bandwidth(ThreadPool *pool, const uint8_t *memory, int64_t bytes) {
  ReadArgs read = {memory, bytes, 0};
  run_on_all(pool, read_work, &read);
  return read.sum;
}

typedef struct {
  const float *matrix;
  int64_t outputs, width, inputs;
  void *packed;
  float *scales;
} PackArgs;

static void pack_f32(const PackArgs *pack, int64_t output) {
  const float *row = pack->matrix + output * pack->width;
  float *to = (float *)pack->packed + output / LANES * LANES * pack->inputs + output % LANES;
  for (int64_t i = 0; i < pack->width; i++) to[i * LANES] = row[i];
}

static void pack_int8(const PackArgs *pack, int64_t output) {
  const float *row = pack->matrix + output * pack->width;
  uint8_t *to = (uint8_t *)pack->packed + output / LANES * LANES * pack->inputs + output % LANES * 4;
  for (int64_t i = 0; i < pack->width; i += MAX_HEAD_DIM) {
    const int64_t count = pack->width - i < MAX_HEAD_DIM ? pack->width - i : MAX_HEAD_DIM;
    int8_t bytes[MAX_HEAD_DIM];
    quantize_int8(row + i, count, pack->scales[output], bytes);
    for (int64_t j = 0; j < count; j += 4) pack4(to + (i + j) * LANES, bytes + j);
  }
}

static void pack_work(ThreadPool *pool, int tid, void *args) {
  const PackArgs *pack = args;
  for (int64_t output; (output = next_task(pool, tid, pack->outputs)) >= 0;) {
    if (pack->scales) {
      pack->scales[output] = int8_scale(pack->matrix + output * pack->width, pack->width);
      pack_int8(pack, output);
    } else {
      pack_f32(pack, output);
    }
  }
  barrier(pool);
}

/* Packs rows of a weight matrix for the products.
 *
 * matrix: [outputs, width] float32; width a multiple of LANES. inputs: the packed matrix's inputs, at least width. packed:
 * written; see Matrix. scales: [outputs], written; NULL: pack as float32.
 */
void pack_matrix(ThreadPool *pool, const float *matrix, int64_t outputs, int64_t width, int64_t inputs, void *packed,
                 float *scales) {
  PackArgs pack = {matrix, outputs, width, inputs, packed, scales};
  run_on_all(pool, pack_work, &pack);
}
