/* A pool of threads that run one function at a time, in phases that barriers separate.
 *
 * After a call the threads spin for SPIN_NANOSECONDS, since a system may take milliseconds to give a woken thread a core.
 * Then they sleep.
 */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPINS_BEFORE_YIELD 20000 /* a thread that has spun so many times yields its core in each further turn */
#define SPIN_NANOSECONDS 2000000 /* a worker sleeps after so long without a call */

/* Memory of zeros, aligned to a cache line; NULL if there is none. */
static void *alloc_zeroed(size_t bytes) {
  void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (memory) memset(memory, 0, bytes);
  return memory;
}

/* The tasks that have been taken from one thread's chunk in this phase. It has a cache line of its own. */
typedef struct {
  _Alignas(64) atomic_int taken;
} TaskCounter;

typedef struct ThreadPool {
  int size;                                        /* threads, the caller's included */
  pthread_t *threads;                              /* [size - 1] workers */
  TaskCounter *counters;                           /* [size] */
  pthread_mutex_t lock;                            /* guards `work` and `args` until they are dispatched */
  pthread_cond_t wake;                             /* wakes sleeping workers */
  void (*work)(struct ThreadPool *, int, void *);  /* of the current call; NULL ends the workers */
  void *args;                                      /* the call's arguments */
  atomic_uint calls;                               /* calls dispatched so far */
  /* state of the current phase */
  _Alignas(64) atomic_int arrived; /* threads at the barrier */
  _Alignas(64) atomic_uint phase;  /* barriers passed so far */
} ThreadPool;

/* One turn of a spin loop. There is no `pause`: a virtual machine may give the core to another one for it. */
static inline void spin_or_yield(int spins) {
  if (spins >= SPINS_BEFORE_YIELD) sched_yield();
}

/* Waits for all threads. Afterwards each thread can read what the others wrote before. The last thread to arrive resets the
 * task counters for the next phase. */
static inline void barrier(ThreadPool *pool) {
  const unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->size - 1) {
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    for (int i = 0; i < pool->size; i++) atomic_store_explicit(&pool->counters[i].taken, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; spins++) spin_or_yield(spins);
}

/* The first task of thread `tid`'s chunk, if a phase has `tasks` tasks. */
static inline int64_t chunk_begin(const ThreadPool *pool, int tid, int64_t tasks) { return tasks * tid / pool->size; }

/* The next task of a phase for thread `tid`, or -1 when no task remains. A thread takes the tasks of its own chunk in order,
 * then tasks from the chunks of slower threads. */
static inline int64_t next_task(ThreadPool *pool, int tid, int64_t tasks) {
  for (int i = 0; i < pool->size; i++) {
    const int owner = (tid + i) % pool->size;
    const int64_t task = chunk_begin(pool, owner, tasks) +
                         atomic_fetch_add_explicit(&pool->counters[owner].taken, 1, memory_order_relaxed);
    if (task < chunk_begin(pool, owner + 1, tasks)) return task;
  }
  return -1;
}

static int64_t now_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Whether a call waits for a worker. done: number of calls that the worker has run. */
static int has_call(ThreadPool *pool, unsigned done) {
  return atomic_load_explicit(&pool->calls, memory_order_acquire) != done;
}

typedef struct {
  ThreadPool *pool;
  int tid;
} Worker;

/* The main function of a worker thread. `argument`: a Worker, which it frees. */
static void *worker_main(void *argument) {
  const Worker worker = *(Worker *)argument;
  ThreadPool *pool = worker.pool;
  free(argument);
  for (unsigned done = 0;; done++) {
    const int64_t until = now_nanoseconds() + SPIN_NANOSECONDS;
    for (int spins = 0; !has_call(pool, done) && now_nanoseconds() < until; spins++) spin_or_yield(spins);
    if (!has_call(pool, done)) {
      pthread_mutex_lock(&pool->lock);
      while (!has_call(pool, done)) pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    if (!pool->work) return NULL;
    pool->work(pool, worker.tid, pool->args);
    barrier(pool);
  }
}

/* Starts a call on all workers. */
static void dispatch(ThreadPool *pool, void (*work)(ThreadPool *, int, void *), void *args) {
  pthread_mutex_lock(&pool->lock);
  pool->work = work;
  pool->args = args;
  atomic_fetch_add_explicit(&pool->calls, 1, memory_order_release);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

/* Runs `work` on all threads, the caller's included, and returns when all are done. One thread at a time may call it. */
static void run_on_all(ThreadPool *pool, void (*work)(ThreadPool *, int, void *), void *args) {
  if (pool->size > 1) dispatch(pool, work, args);
  work(pool, 0, args);
  barrier(pool);
}

/* Ends the workers and frees the pool. */
__attribute__((unused)) static void pool_close(ThreadPool *pool) {
  dispatch(pool, NULL, NULL);
  for (int i = 0; i < pool->size - 1; i++) pthread_join(pool->threads[i], NULL);
  pthread_mutex_destroy(&pool->lock);
  pthread_cond_destroy(&pool->wake);
  free(pool->threads);
  free(pool->counters);
  free(pool);
}

/* Starts one more worker; 0 if the system refuses. */
static int spawn_worker(ThreadPool *pool) {
  Worker *worker = malloc(sizeof *worker);
  if (!worker) return 0;
  *worker = (Worker){pool, pool->size};
  if (!pthread_create(&pool->threads[pool->size - 1], NULL, worker_main, worker)) return 1;
  free(worker);
  return 0;
}

/* A pool of `size` threads, or of fewer if the system starts no more; NULL if there is no memory. */
__attribute__((unused)) static ThreadPool *pool_open(int size) {
  ThreadPool *pool = alloc_zeroed(sizeof *pool);
  if (!pool) return NULL;
  pool->size = 1;
  pool->threads = alloc_zeroed(size * sizeof *pool->threads);
  pool->counters = alloc_zeroed(size * sizeof *pool->counters);
  if (!pool->threads || !pool->counters) {
    free(pool->threads);
    free(pool->counters);
    free(pool);
    return NULL;
  }
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  while (pool->size < size && spawn_worker(pool)) pool->size++;
  return pool;
}
