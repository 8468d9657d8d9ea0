// The page: connects the form, the clips and the history.

import * as api from "./api.js";
import { ClipCard } from "./clip_card.js";
import { byId, createElement } from "./dom.js";
import { formatSeconds } from "./format.js";
import { downloadAudio, pollJob } from "./job_polling.js";
import * as models from "./model_select.js";
import * as form from "./request_form.js";
import { copyText, curlSnippet, pythonSnippet } from "./snippets.js";
import * as storage from "./storage.js";

const cards = new Map(); // card → {id, abort}
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// The error of a job that was cancelled, but not on this page.
const CANCELLED_ELSEWHERE = {
  code: "cancelled",
  message: "The clip was cancelled.",
  hint: "Another page cancelled it, or no page polled it for five minutes.",
};

// Announces text to screen readers.
function announce(text) {
  byId("status").textContent = text;
}

function reveal(element) {
  element.scrollIntoView({ block: "nearest", behavior: reducedMotion.matches ? "auto" : "smooth" });
}

function addCard(request) {
  const card = new ClipCard(request, cardHandlers);
  byId("list").prepend(card.element);
  byId("empty").hidden = true;
  return card;
}

async function onSubmit(event) {
  event.preventDefault();
  form.clearErrors();
  try {
    await generate(form.readRequest());
  } catch (error) {
    form.showError(toApiError(error));
  }
}

async function generate(request) {
  byId("generate").disabled = true;
  try {
    const job = await api.submitJob(request);
    const resolved = { ...request, model: job.model, seed: job.seed, duration: job.duration };
    storage.saveJob({ id: job.id, request: resolved });
    storage.addToHistory(resolved);
    showHistory();
    const card = addCard(resolved);
    reveal(card.element);
    announce("The clip is in the queue.");
    watchJob(card, job.id);
  } finally {
    byId("generate").disabled = false;
  }
}

// Polls a job and shows its progress and its result on the card.
async function watchJob(card, id) {
  const abort = new AbortController();
  cards.set(card, { id, abort });
  storage.claimJob(id);
  let state = "";
  const onUpdate = (job) => {
    card.update(job);
    if (job.state !== state && ["loading", "running"].includes(job.state)) models.refreshModels().catch(() => {});
    state = job.state;
  };
  const options = { onUpdate, onError: (error) => card.showRetrying(error), signal: abort.signal };
  try {
    const job = await pollJob(id, options);
    if (job.state === "done") {
      card.setStatus("Downloading the audio");
      card.parts.cancel.hidden = true;
      await card.showAudio(await downloadAudio(id, options));
      announce(`A clip of ${formatSeconds(job.duration)} is ready.`);
    } else {
      const error = job.error ?? (card.cancelled ? null : CANCELLED_ELSEWHERE);
      card.showFailure(error);
      announce(error ? `The clip failed: ${error.message}` : "The clip was cancelled.");
    }
    api.deleteJob(id).catch(() => {}); // otherwise the server deletes it later
  } catch (error) {
    if (abort.signal.aborted) return; // the user has removed the card
    const apiError = toApiError(error);
    card.showFailure(apiError);
    announce(`The clip failed: ${apiError.message}`);
  }
  storage.forgetJob(id);
  models.refreshModels().catch(() => {});
}

function toApiError(error) {
  if (error instanceof api.ApiError) return error;
  console.error(error);
  return new api.ApiError({ code: "page", message: "An unexpected error occurred on this page.", hint: "Reload the page." });
}

const cardHandlers = {
  async cancel(card) {
    card.parts.cancel.disabled = true;
    card.cancelled = true;
    try {
      await api.deleteJob(cards.get(card).id);
    } catch (error) {
      card.cancelled = false;
      card.setStatus(`The clip could not be cancelled: ${toApiError(error).message}`);
      card.parts.cancel.disabled = false;
    }
  },
  reuse(card) {
    reuseRequest(card.request);
  },
  async retry(card, button) {
    form.clearErrors();
    button.disabled = true;
    try {
      await generate(card.request);
      cardHandlers.remove(card);
    } catch (error) {
      form.showError(toApiError(error));
      button.disabled = false;
    }
  },
  remove(card) {
    const { id, abort } = cards.get(card);
    abort.abort();
    storage.forgetJob(id);
    cards.delete(card);
    card.remove();
    byId("empty").hidden = cards.size > 0;
    byId("clips").focus({ preventScroll: true });
  },
};

function reuseRequest(request) {
  form.fillForm(request);
  reveal(byId("form"));
  byId("prompt").focus({ preventScroll: true });
}

function showHistory() {
  const requests = storage.history();
  byId("history").hidden = requests.length === 0;
  byId("history-list").replaceChildren(...requests.map(historyItem));
}

function historyItem(request) {
  const item = document.createElement("li");
  const button = createElement("button", "", { type: "button" });
  const facts = `${request.model.replace("facebook/", "")} · ${formatSeconds(request.duration ?? 30)} · seed ${request.seed}`;
  button.append(createElement("span", request.prompt), createElement("small", facts));
  button.addEventListener("click", () => reuseRequest(request));
  item.append(button);
  return item;
}

// Makes a button copy the form's request as code.
function addCopyHandler(id, toSnippet) {
  byId(id).addEventListener("click", (event) => {
    form.clearErrors();
    try {
      copyText(event.currentTarget, toSnippet(form.readRequest()), announce);
    } catch (error) {
      form.showError(toApiError(error));
    }
  });
}

byId("form").addEventListener("submit", onSubmit);
addCopyHandler("curl", curlSnippet);
addCopyHandler("python", pythonSnippet);
byId("clear").addEventListener("click", () => {
  storage.clearHistory();
  showHistory();
  announce("The history is empty.");
});
models.modelEvents.addEventListener("change", () => cards.forEach((_, card) => card.updateLoadProgress()));
addEventListener("focus", () => models.refreshModels().catch(() => {}));

showHistory();
models.refreshModels().catch((error) => form.showError(toApiError(error)));
api.maxDuration().then((seconds) => {
  byId("duration").max = seconds;
}, () => {}); // the server checks the duration too
storage.unclaimedJobs().then((jobs) => jobs.forEach(({ id, request }) => watchJob(addCard(request), id)));
