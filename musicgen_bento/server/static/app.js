// The page: from the form to clips, and the history.

import * as api from "./api.js";
import { Card } from "./clip_card.js";
import { collect, follow } from "./job_polling.js";
import * as form from "./request_form.js";
import * as models from "./model_select.js";
import { copy, curl, python } from "./snippets.js";
import * as store from "./storage.js";
import { seconds } from "./format.js";

const at = (id) => document.getElementById(id);
const cards = new Map(); // card → {id, stop}
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Of a job that was cancelled, and not from here.
const GIVEN_UP = { code: "cancelled", message: "The server gave the clip up.", hint: "Nobody had asked after it for five minutes, or it was cancelled elsewhere." };

const say = (text) => {
  at("status").textContent = text;
};

function reveal(element) {
  element.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
}

function put(request) {
  const card = new Card(request, hears);
  at("list").prepend(card.element);
  at("empty").hidden = true;
  return card;
}

async function submit(event) {
  event.preventDefault();
  form.clear();
  try {
    await make(form.request());
  } catch (error) {
    form.show(asFailure(error));
  }
}

async function make(request) {
  at("generate").disabled = true;
  try {
    const job = await api.submit(request);
    const whole = { ...request, model: job.model, seed: job.seed, duration: job.duration };
    store.keepJob({ id: job.id, request: whole });
    store.remember(whole);
    showHistory();
    const card = put(whole);
    reveal(card.element);
    say("Taken. It is in the queue.");
    watch(card, job.id);
  } finally {
    at("generate").disabled = false;
  }
}

async function watch(card, id) {
  const stop = new AbortController();
  cards.set(card, { id, stop });
  store.claim(id);
  let state = "";
  const tell = (job) => {
    card.tell(job);
    if (job.state !== state && ["loading", "running"].includes(job.state)) models.refresh().catch(() => {});
    state = job.state;
  };
  const heard = { tell, trouble: (failure) => card.trouble(failure), signal: stop.signal };
  try {
    const job = await follow(id, heard);
    if (job.state === "done") {
      card.line("Fetching it");
      card.parts.cancel.hidden = true;
      await card.music(await collect(id, heard));
      say(`A clip of ${seconds(job.duration)} is ready.`);
    } else {
      const error = job.error ?? (card.cancelled ? null : GIVEN_UP);
      card.end(error);
      say(error ? `A clip failed: ${error.message}` : "Cancelled.");
    }
    api.drop(id).catch(() => {}); // it is forgotten there in time, at the latest
  } catch (error) {
    if (stop.signal.aborted) return; // removed
    card.end(asFailure(error));
    say("A clip was lost.");
  }
  store.forgetJob(id);
  models.refresh().catch(() => {});
}

function asFailure(error) {
  if (error instanceof api.Failure) return error;
  console.error(error);
  return new api.Failure({ code: "page", message: "The page failed.", hint: "Load it again." });
}

const hears = {
  async cancel(card) {
    card.parts.cancel.disabled = true;
    card.cancelled = true;
    try {
      await api.drop(cards.get(card).id);
    } catch (error) {
      card.cancelled = false;
      card.line(`It could not be cancelled: ${asFailure(error).message}`);
      card.parts.cancel.disabled = false;
    }
  },
  again(card) {
    use(card.request);
  },
  async retry(card, button) {
    form.clear();
    button.disabled = true;
    try {
      await make(card.request);
      hears.remove(card);
    } catch (error) {
      form.show(asFailure(error));
      button.disabled = false;
    }
  },
  remove(card) {
    const { id, stop } = cards.get(card);
    stop.abort();
    store.forgetJob(id);
    cards.delete(card);
    card.remove();
    at("empty").hidden = cards.size > 0;
    at("clips").focus({ preventScroll: true });
  },
};

function use(request) {
  form.fill(request);
  reveal(at("form"));
  at("prompt").focus({ preventScroll: true });
}

function showHistory() {
  const past = store.history();
  at("history").hidden = past.length === 0;
  at("past").replaceChildren(
    ...past.map((request) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      const prompt = document.createElement("span");
      prompt.textContent = request.prompt;
      const facts = document.createElement("small");
      facts.textContent = `${request.model.replace("facebook/", "")} · ${seconds(request.duration ?? 30)} · seed ${request.seed}`;
      button.append(prompt, facts);
      button.addEventListener("click", () => use(request));
      item.append(button);
      return item;
    }),
  );
}

function offer(button, write) {
  at(button).addEventListener("click", (event) => {
    form.clear();
    try {
      copy(event.currentTarget, write(form.request()), say);
    } catch (error) {
      form.show(asFailure(error));
    }
  });
}

at("form").addEventListener("submit", submit);
offer("curl", curl);
offer("python", python);
at("clear").addEventListener("click", () => {
  store.clearHistory();
  showHistory();
  say("The history is cleared.");
});
models.list.addEventListener("news", () => cards.forEach((_, card) => card.arriving()));
addEventListener("focus", () => models.refresh().catch(() => {}));

showHistory();
models.refresh().catch((error) => form.show(asFailure(error)));
api.longestDuration().then((longest) => {
  at("duration").max = longest;
}, () => {}); // the server checks it anyway
store.orphans().then((jobs) => jobs.forEach(({ id, request }) => watch(put(request), id)));
