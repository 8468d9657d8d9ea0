// From a job's id to its music, across connections that break and a page that is loaded again.

import { Failure, fetchMusic, news } from "./api.js";

const LONGEST_PAUSE = 10_000;

// A browser has six connections to a server, for all its tabs: a question that waits for its answer holds one, and
// so does a clip that is listened to while it is made.
const WAITERS = 2;
const WAIT_SECONDS = 25;
const PAUSE = 1000;
let holding = 0;

const sleep = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

const over = (job) => ["done", "failed", "cancelled"].includes(job.state);

// Whether asking again may help: the server was not there, or something before it stood in for it.
const passing = (failure) => failure instanceof Failure && (failure.status === 0 || failure.status >= 500 || failure.status === 429);

async function insist(attempt, trouble, signal) {
  for (let pause = 500; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      return await attempt();
    } catch (failure) {
      if (signal.aborted || !passing(failure)) throw failure;
      trouble(failure);
      await sleep(pause);
      if (signal.aborted) throw failure;
    }
  }
}

// Does what may hold a connection for long.
export async function hold(work) {
  holding += 1;
  try {
    return await work();
  } finally {
    holding -= 1;
  }
}

// Tells everything that is new until the job is over, and gives its last state.
export const follow = (id, { tell, trouble, signal }) => hold(async () => {
  for (let version = 0; ; ) {
    const crowded = holding > WAITERS;
    const job = await insist(() => news(id, version, crowded ? 0 : WAIT_SECONDS, signal), trouble, signal);
    tell(job);
    if (over(job)) return job;
    version = job.version;
    if (crowded) await sleep(PAUSE);
  }
});

export const collect = (id, { trouble, signal }) => insist(() => fetchMusic(id, signal), trouble, signal);
