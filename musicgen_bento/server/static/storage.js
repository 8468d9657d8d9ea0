// Data stored in the browser only: unfinished jobs, and the settings of earlier clips.

const JOBS = "musicgen.jobs";
const HISTORY = "musicgen.history";
const MAX_HISTORY = 50;
const CLAIM_REPLY_MS = 200;

function read(key) {
  try {
    const entries = JSON.parse(localStorage.getItem(key));
    return Array.isArray(entries) ? entries : [];
  } catch {
    return []; // storage is forbidden, or the value was written by another program
  }
}

function write(key, entries) {
  try {
    localStorage.setItem(key, JSON.stringify(entries));
  } catch {
    // Storage is forbidden or full: the page works, but a reload loses the entries.
  }
}

/** Returns the stored jobs, each `{id, request}`. */
export const storedJobs = () => read(JOBS);
export const saveJob = (job) => write(JOBS, [...storedJobs().filter((stored) => stored.id !== job.id), job]);
export const forgetJob = (id) => write(JOBS, storedJobs().filter((stored) => stored.id !== id));

/** Returns earlier requests with their seeds, newest first. */
export const history = () => read(HISTORY);
export function addToHistory(request) {
  const json = JSON.stringify(request);
  write(HISTORY, [request, ...history().filter((past) => JSON.stringify(past) !== json)].slice(0, MAX_HISTORY));
}
export const clearHistory = () => write(HISTORY, []);

// All tabs share the storage, but only one tab polls a job. A new page asks the other tabs which jobs they poll.
const ASK_FOR_CLAIMS = "claims?";
const ownClaims = new Set();
const otherClaims = new Set();
const channel = new BroadcastChannel("musicgen.jobs");
channel.addEventListener("message", ({ data }) => {
  if (data === ASK_FOR_CLAIMS) channel.postMessage([...ownClaims]);
  else data.forEach((id) => otherClaims.add(id));
});

export const claimJob = (id) => ownClaims.add(id);

/** Returns the stored jobs that no tab polls. */
export async function unclaimedJobs() {
  channel.postMessage(ASK_FOR_CLAIMS);
  await new Promise((resolve) => setTimeout(resolve, CLAIM_REPLY_MS));
  return storedJobs().filter(({ id }) => !ownClaims.has(id) && !otherClaims.has(id));
}
