// Client of the server's HTTP API. Every failure is an ApiError with texts for the user.

/** An error of the server or of the connection. */
export class ApiError extends Error {
  /** @param {number} status HTTP status; 0 if the server did not respond */
  constructor({ code = "", message, hint = "", field = null, retry_after = 0 }, status = 0) {
    super(message);
    Object.assign(this, { code, hint, field, retry_after, status });
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({
      code: "unreachable",
      message: "The server cannot be reached.",
      hint: "Check that the server is running and that you are online.",
    });
  }
  if (response.ok) return response;
  throw await toApiError(response);
}

async function toApiError(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // The body is not JSON of this service, for example the page of a proxy.
  }
  error ??= {
    code: `http_${response.status}`,
    message: `The server responded with status ${response.status}.`,
    hint: "Try again in a moment.",
    retry_after: Number(response.headers.get("Retry-After")) || 0,
  };
  return new ApiError(error, response.status);
}

/** Submits a job and returns its state. */
export async function submitJob(body) {
  const headers = { "Content-Type": "application/json" };
  return (await request("jobs", { method: "POST", headers, body: JSON.stringify(body) })).json();
}

const jobPath = (id) => `jobs/${encodeURIComponent(id)}`;

/** Returns a job's state once it is newer than `version`, or after `wait` seconds. */
export async function waitForUpdate(id, version, wait, signal) {
  return (await request(`${jobPath(id)}?wait=${wait}&version=${version}`, { signal })).json();
}

/** Returns the response that streams a job's audio while it is generated. */
export const streamAudio = (id, signal) => request(`${jobPath(id)}/stream`, { signal });

/** Returns a finished job's WAV and headers. The server keeps the audio until `deleteJob`. */
export async function fetchAudio(id, signal) {
  const response = await request(`${jobPath(id)}/audio?keep=true`, { signal });
  try {
    return { wav: await response.blob(), headers: response.headers };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ code: "unreachable", message: "The connection was lost.", hint: "" });
  }
}

/** Cancels a running job, or deletes a finished one. */
export async function deleteJob(id) {
  await request(jobPath(id), { method: "DELETE", keepalive: true });
}

export async function listModels() {
  return (await (await request("models")).json()).models;
}

/** Returns the longest duration in seconds that the server accepts. */
export async function maxDuration() {
  const { schemas } = (await (await request("docs.json")).json()).components;
  return schemas.GenerationRequest.properties.duration.maximum;
}
