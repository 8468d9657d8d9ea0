"use strict";

const at = (id) => document.getElementById(id);
const models = new Map();
let running = null; // the AbortController of the request that is going on
let clip = null; // the object URL of the clip that is shown

function fail(error) {
  at("message").textContent = error.message;
  at("hint").textContent = error.hint || "";
  at("error").hidden = false;
  for (const name of ["prompt", "model", "duration"]) at(name).toggleAttribute("aria-invalid", error.field === name);
  if (["prompt", "model", "duration"].includes(error.field)) at(error.field).focus();
}

// Whatever went wrong comes back as {message, hint, field}; a server that is not there has no words of its own.
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { message: "The server cannot be reached.", hint: "Is it running? Try again in a moment." };
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // not from this service: a proxy's page, say
  }
  throw body.error || { message: `The server answered ${response.status}.`, hint: "Try again in a moment." };
}

function describe() {
  const model = models.get(at("model").value);
  if (!model) return;
  const parts = [model.note, model.license && `Licence of the weights: ${model.license}.`];
  if (model.state === "downloadable" && model.download_bytes) {
    parts.push(`It is downloaded first (${(model.download_bytes / 1e9).toFixed(1)} GB).`);
  }
  at("about").textContent = parts.filter(Boolean).join(" ");
}

async function list() {
  try {
    const answer = await (await ask("models")).json();
    at("model").replaceChildren(
      ...answer.models
        .filter((model) => !model.conditioning.includes("melody"))
        .map((model) => {
          models.set(model.id, model);
          const where = model.state === "loaded" ? "" : ` (${model.state})`;
          return new Option(model.id + where, model.id, model.default, model.default);
        }),
    );
    at("model").disabled = false;
    describe();
  } catch (error) {
    at("model").replaceChildren(new Option("the server's default", ""));
    fail(error);
  }
}

async function longest() {
  try {
    const schemas = (await (await ask("docs.json")).json()).components.schemas;
    at("duration").max = schemas.GenerationRequest.properties.duration.maximum;
  } catch {
    // the server checks it anyway
  }
}

function show(wav, headers) {
  if (clip) URL.revokeObjectURL(clip);
  clip = URL.createObjectURL(wav);
  at("audio").src = clip;
  at("download").href = clip;
  at("download").download = `music-${headers.get("x-seed")}.wav`;
  at("facts").textContent =
    `${headers.get("x-model")}, ${Number(headers.get("x-audio-duration"))} s, seed ${headers.get("x-seed")}`;
  at("result").hidden = false;
}

async function generate(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  at("error").hidden = true;
  at("generate").disabled = true;
  at("cancel").hidden = false;
  const started = performance.now();
  const clock = setInterval(() => {
    at("status").textContent = `Making it… ${Math.round((performance.now() - started) / 1000)} s`;
  }, 1000);
  at("status").textContent = "Making it…";
  try {
    const body = { prompt: at("prompt").value, duration: Number(at("duration").value) };
    if (at("model").value) body.model = at("model").value;
    const response = await ask("generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    show(await response.blob(), response.headers);
    at("status").textContent = `Made in ${((performance.now() - started) / 1000).toFixed(1)} s.`;
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") {
      fail(error.message ? error : { message: "The answer broke off.", hint: "Try again." });
    }
  } finally {
    clearInterval(clock);
    running = null;
    at("generate").disabled = false;
    at("cancel").hidden = true;
  }
}

at("form").addEventListener("submit", generate);
at("cancel").addEventListener("click", () => running && running.abort());
at("model").addEventListener("change", describe);
list();
longest();
