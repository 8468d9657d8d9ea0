// What the browser remembers: jobs that are not over, and the settings of earlier clips. It goes nowhere else.

const JOBS = "musicgen.jobs";
const HISTORY = "musicgen.history";
const LONGEST_HISTORY = 50;

function read(key) {
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    return Array.isArray(kept) ? kept : [];
  } catch {
    return []; // forbidden, or not ours
  }
}

function write(key, entries) {
  try {
    localStorage.setItem(key, JSON.stringify(entries));
  } catch {
    // forbidden or full: the page works, it only forgets with a reload
  }
}

// Each is {id, request}.
export const jobs = () => read(JOBS);
export const keepJob = (job) => write(JOBS, [...jobs().filter((kept) => kept.id !== job.id), job]);
export const forgetJob = (id) => write(JOBS, jobs().filter((kept) => kept.id !== id));

// Requests, with their seeds, newest first.
export const history = () => read(HISTORY);
export function remember(request) {
  const same = JSON.stringify(request);
  write(HISTORY, [request, ...history().filter((past) => JSON.stringify(past) !== same)].slice(0, LONGEST_HISTORY));
}
export const clearHistory = () => write(HISTORY, []);

// Two tabs share the storage; a job belongs to the tab that follows it. A page that begins asks the others for theirs.
const mine = new Set();
const theirs = new Set();
const channel = new BroadcastChannel("musicgen.jobs");
channel.addEventListener("message", ({ data }) => {
  if (data === "whose?") channel.postMessage([...mine]);
  else data.forEach((id) => theirs.add(id));
});

export const claim = (id) => mine.add(id);
export async function orphans() {
  channel.postMessage("whose?");
  await new Promise((go) => setTimeout(go, 200));
  return jobs().filter(({ id }) => !mine.has(id) && !theirs.has(id));
}
