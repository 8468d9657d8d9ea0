// Polling of a job and download of its audio. Both continue after connection errors and page reloads.

import { ApiError, fetchAudio, waitForUpdate } from "./api.js";

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 10_000;

// A browser allows six connections to a server for all its tabs. A long poll occupies one connection, and so does a clip
// that plays while it is generated. If more than MAX_LONG_POLLS are occupied, jobs are polled at intervals instead.
const MAX_LONG_POLLS = 2;
const LONG_POLL_SECONDS = 25;
const POLL_INTERVAL_MS = 1000;
let openConnections = 0;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const isFinal = (job) => ["done", "failed", "cancelled"].includes(job.state);

// Whether a retry may succeed: the server did not respond, is overloaded, or a proxy responded in its place.
const isRetryable = (error) => error instanceof ApiError && (error.status === 0 || error.status >= 500 || error.status === 429);

async function withRetry(attempt, onError, signal) {
  for (let pause = FIRST_RETRY_MS; ; pause = Math.min(2 * pause, MAX_RETRY_MS)) {
    try {
      return await attempt();
    } catch (error) {
      if (signal.aborted || !isRetryable(error)) throw error;
      onError(error);
      await sleep(pause);
      if (signal.aborted) throw error;
    }
  }
}

/** Counts a connection as occupied while `work` runs. */
export async function withConnectionSlot(work) {
  openConnections += 1;
  try {
    return await work();
  } finally {
    openConnections -= 1;
  }
}

/**
 * Polls a job until it is done, failed or cancelled, and returns its last state.
 * @param {string} id of the job
 * @param {{onUpdate: function, onError: function, signal: AbortSignal}} options
 */
export const pollJob = (id, { onUpdate, onError, signal }) => withConnectionSlot(async () => {
  for (let version = 0; ; ) {
    const crowded = openConnections > MAX_LONG_POLLS;
    const job = await withRetry(() => waitForUpdate(id, version, crowded ? 0 : LONG_POLL_SECONDS, signal), onError, signal);
    onUpdate(job);
    if (isFinal(job)) return job;
    version = job.version;
    if (crowded) await sleep(POLL_INTERVAL_MS);
  }
});

/** Downloads a finished job's audio, with retries. */
export const downloadAudio = (id, { onError, signal }) => withRetry(() => fetchAudio(id, signal), onError, signal);
