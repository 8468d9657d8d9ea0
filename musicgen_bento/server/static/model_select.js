// The choice of a model: where each is now, and what to know before taking it.

import { listModels } from "./api.js";
import { gigabytes } from "./format.js";

const GROUPS = { loaded: "Ready", loading: "Being loaded", cached: "On the server’s disk", downloadable: "Downloaded on first use" };
const STATES = { loaded: "ready", cached: "loads in a moment", downloadable: "not here yet" };
const FIRST_REAL = "facebook/musicgen-small";
const NOT_COMMERCIAL = /\bNC\b/;

// Dispatches "news" when the list has changed.
export const list = new EventTarget();

const select = document.getElementById("model");
const box = document.getElementById("model-about");
let models = [];
let timer = 0;

export const find = (id) => models.find((model) => model.id === id || model.aliases.includes(id));

const short = (id) => id.replace("facebook/", "");
const million = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} B` : `${Number((count / 1e6).toPrecision(2))} M`);
const size = (model) => (model.state === "downloadable" && model.download_bytes ? ` · ${gigabytes(model.download_bytes)}` : "");

// How far the server is with getting a model into memory: words, and 0 to 1 where that can be counted.
export function arrival(id) {
  const progress = find(id)?.progress;
  switch (progress?.step) {
    case "downloading": {
      const { done_bytes: done, total_bytes: total } = progress;
      if (!total) return { words: "downloading" };
      return { words: `downloading, ${gigabytes(done)} of ${gigabytes(total)}`, part: done / total };
    }
    case "waiting":
      return { words: progress.ahead ? `waits for room in memory, ${progress.ahead} before it` : "waits for room in memory" };
    default:
      return { words: "loading into memory" };
  }
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

export function describe() {
  const model = find(select.value);
  if (!model) {
    box.replaceChildren();
    return;
  }
  const state = model.state === "loading" ? arrival(model.id).words : STATES[model.state];
  const facts = [
    model.channels && (model.channels === 2 ? "stereo" : "mono"),
    model.parameters && `${million(model.parameters)} parameters`,
    model.state === "downloadable" && model.download_bytes && `${gigabytes(model.download_bytes)} to download`,
    model.memory_bytes && `${gigabytes(model.memory_bytes)} of memory`,
    model.license && `licence ${model.license}${NOT_COMMERCIAL.test(model.license) ? ", not for commercial use" : ""}`,
  ];
  const line = element("p", "");
  line.append(element("span", state, { class: `state ${model.state}` }), facts.filter(Boolean).map((fact) => ` · ${fact}`).join(""));
  const more = model.id === "demo" ? forMusic() : element("p", model.note ?? "");
  if (box.textContent === line.textContent + more.textContent) return; // its button keeps the focus
  box.replaceChildren(line, ...(more.textContent ? [more] : []));
}

function forMusic() {
  const small = find(FIRST_REAL);
  const words = element("p", "A tiny model for trying, testing and offline use: synthesised loops in twelve genres. ");
  if (!small) {
    words.append("For music to keep, name a MusicGen of the list.");
    return words;
  }
  const choose = element("button", `Take ${short(small.id)}`, { type: "button", class: "plain", id: "real" });
  choose.addEventListener("click", () => {
    select.value = small.id;
    select.focus();
    describe();
  });
  const once = small.state === "downloadable" ? ` The server downloads it once, ${gigabytes(small.download_bytes)}.` : "";
  words.append("For music to keep: ", choose, ".", once);
  return words;
}

function fill() {
  const chosen = select.value || models.find((model) => model.default)?.id || "";
  const groups = Object.entries(GROUPS).map(([state, label]) => {
    const group = document.createElement("optgroup");
    group.label = label;
    const here = models.filter((model) => model.state === state && !model.conditioning.includes("melody"));
    group.append(...here.map((model) => new Option(short(model.id) + size(model), model.id)));
    return group;
  });
  select.replaceChildren(...groups.filter((group) => group.childElementCount));
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

// Asks again while one of them is on its way, and keeps what was chosen.
export async function refresh() {
  clearTimeout(timer);
  const before = JSON.stringify(models);
  models = await listModels();
  if (JSON.stringify(models) !== before) {
    fill();
    describe();
    list.dispatchEvent(new Event("news"));
  }
  if (models.some((model) => model.state === "loading")) timer = setTimeout(() => refresh().catch(() => {}), 2000);
}

// A model that another site's settings name, or one that is not in the list any more.
export function choose(id) {
  const model = find(id);
  if (!model && id) select.append(new Option(id, id));
  select.value = model?.id ?? id ?? "";
  describe();
}

select.addEventListener("change", describe);
