/* Threads that go through one piece of work together, in phases.
 *
 * After a piece they stay awake for a moment, since a system may take milliseconds to give a thread that wakes a core of
 * its own; then they sleep.
 */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPINS 20000 /* before a thread that waits lets others have the core */
#define AWAKE 2000000 /* nanoseconds */

/* Zeros, or NULL. */
static void *room(size_t bytes) {
  void *found = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (found) memset(found, 0, bytes);
  return found;
}

typedef struct {
  _Alignas(64) atomic_int taken;
} Queue;

typedef struct Team {
  int size;
  pthread_t *threads;
  Queue *queues; /* one of each thread */
  pthread_mutex_t lock;
  pthread_cond_t wake;
  void (*work)(struct Team *, int, void *); /* NULL: they end */
  void *with;
  atomic_uint pieces; /* begun so far */
  /* of a phase */
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint phase;
} Team;

/* No `pause`: where the machine is a virtual one, it may hand the core to another for it. */
static inline void relax(int spins) {
  if (spins >= SPINS) sched_yield();
}

/* Wait for all others: what they wrote before is seen after it. */
static inline void meet(Team *team) {
  const unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    for (int i = 0; i < team->size; i++) atomic_store_explicit(&team->queues[i].taken, 0, memory_order_relaxed);
    atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) relax(spins);
}

/* Where the parts of thread `me` begin, of so many. */
static inline int64_t share_of(const Team *team, int me, int64_t parts) { return parts * me / team->size; }

/* The next of a phase's parts, or -1. A thread does its own, in order, then those of whoever is late. */
static inline int64_t take(Team *team, int me, int64_t parts) {
  for (int i = 0; i < team->size; i++) {
    const int whose = (me + i) % team->size;
    const int64_t part = share_of(team, whose, parts) +
                         atomic_fetch_add_explicit(&team->queues[whose].taken, 1, memory_order_relaxed);
    if (part < share_of(team, whose + 1, parts)) return part;
  }
  return -1;
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int begun(Team *team, unsigned done) { return atomic_load_explicit(&team->pieces, memory_order_acquire) != done; }

typedef struct {
  Team *team;
  int me;
} Member;

static void *serve(void *argument) {
  const Member member = *(Member *)argument;
  Team *team = member.team;
  free(argument);
  for (unsigned done = 0;; done++) {
    const int64_t until = nanoseconds() + AWAKE;
    for (int spins = 0; !begun(team, done) && nanoseconds() < until; spins++) relax(spins);
    if (!begun(team, done)) {
      pthread_mutex_lock(&team->lock);
      while (!begun(team, done)) pthread_cond_wait(&team->wake, &team->lock);
      pthread_mutex_unlock(&team->lock);
    }
    if (!team->work) return NULL;
    team->work(team, member.me, team->with);
    meet(team);
  }
}

static void begin(Team *team, void (*work)(Team *, int, void *), void *with) {
  pthread_mutex_lock(&team->lock);
  team->work = work, team->with = with;
  atomic_fetch_add_explicit(&team->pieces, 1, memory_order_release);
  pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
}

/* One thread at a time may ask for work; it works too. */
static void together(Team *team, void (*work)(Team *, int, void *), void *with) {
  if (team->size > 1) begin(team, work, with);
  work(team, 0, with);
  meet(team);
}

__attribute__((unused)) static void team_close(Team *team) {
  begin(team, NULL, NULL);
  for (int i = 0; i < team->size - 1; i++) pthread_join(team->threads[i], NULL);
  pthread_mutex_destroy(&team->lock);
  pthread_cond_destroy(&team->wake);
  free(team->threads), free(team->queues);
  free(team);
}

static int join(Team *team) {
  Member *member = malloc(sizeof *member);
  if (!member) return 0;
  *member = (Member){team, team->size};
  if (!pthread_create(&team->threads[team->size - 1], NULL, serve, member)) return 1;
  free(member);
  return 0;
}

/* NULL where the system gives no memory; fewer threads where it gives no more of them. */
__attribute__((unused)) static Team *team_open(int size) {
  Team *team = room(sizeof *team);
  if (!team) return NULL;
  team->size = 1;
  team->threads = room(size * sizeof *team->threads), team->queues = room(size * sizeof *team->queues);
  if (!team->threads || !team->queues) {
    free(team->threads), free(team->queues), free(team);
    return NULL;
  }
  pthread_mutex_init(&team->lock, NULL);
  pthread_cond_init(&team->wake, NULL);
  while (team->size < size && join(team)) team->size++;
  return team;
}
