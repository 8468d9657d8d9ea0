// The server's routes. Whatever goes wrong is a Failure, with words for people in it.

export class Failure extends Error {
  // Without a status the server was not there to answer.
  constructor({ code = "", message, hint = "", field = null, retry_after = 0 }, status = 0) {
    super(message);
    Object.assign(this, { code, hint, field, retry_after, status });
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({
      code: "unreachable",
      message: "The server cannot be reached.",
      hint: "Is it running, and are you online?",
    });
  }
  if (response.ok) return response;
  throw await failureOf(response);
}

async function failureOf(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // not this service's words: a proxy's page, say
  }
  error ??= {
    code: `http_${response.status}`,
    message: `The server answered ${response.status}.`,
    hint: "Try again in a moment.",
    retry_after: Number(response.headers.get("Retry-After")) || 0,
  };
  return new Failure(error, response.status);
}

export async function submit(request) {
  const headers = { "Content-Type": "application/json" };
  return (await ask("jobs", { method: "POST", headers, body: JSON.stringify(request) })).json();
}

const job = (id) => `jobs/${encodeURIComponent(id)}`;

// Answers when the job is newer than this version, or so many seconds are over.
export async function news(id, version, wait, signal) {
  return (await ask(`${job(id)}?wait=${wait}&version=${version}`, { signal })).json();
}

// The answer that grows while the music is made.
export const listen = (id, signal) => ask(`${job(id)}/stream`, { signal });

// The WAV, which the server keeps until it is told that all of it is here.
export async function fetchMusic(id, signal) {
  const response = await ask(`${job(id)}/audio?keep=true`, { signal });
  try {
    return { wav: await response.blob(), headers: response.headers };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({ code: "unreachable", message: "The connection broke off.", hint: "" });
  }
}

export async function drop(id) {
  await ask(job(id), { method: "DELETE", keepalive: true });
}

export async function listModels() {
  return (await (await ask("models")).json()).models;
}

export async function longestDuration() {
  const { schemas } = (await (await ask("docs.json")).json()).components;
  return schemas.GenerationRequest.properties.duration.maximum;
}
