// The model selection: the state of each model, and the facts to know before choosing it.

import { listModels } from "./api.js";
import { createElement } from "./dom.js";
import { formatBytes } from "./format.js";

const GROUPS = { loaded: "Ready", loading: "Loading", cached: "Downloaded", downloadable: "Downloaded on first use" };
const STATES = { loaded: "ready", cached: "loads in a moment", downloadable: "not downloaded" };
const RECOMMENDED = "facebook/musicgen-small";
const NON_COMMERCIAL = /\bNC\b/;
const REFRESH_MS = 2000; // while a model is loading

/** Dispatches "change" when the list of models has changed. */
export const modelEvents = new EventTarget();

const select = document.getElementById("model");
const infoBox = document.getElementById("model-info");
let models = [];
let refreshTimer = 0;

const findModel = (id) => models.find((model) => model.id === id || model.aliases.includes(id));

const shortName = (id) => id.replace("facebook/", "");
const formatCount = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} B` : `${Number((count / 1e6).toPrecision(2))} M`);
const needsDownload = (model) => model.state === "downloadable" && model.download_bytes;

/** Returns the progress of loading a model as text and, while downloading, as a fraction from 0 to 1. */
export function loadProgress(id) {
  const progress = findModel(id)?.progress;
  switch (progress?.step) {
    case "downloading": {
      const { done_bytes: done, total_bytes: total } = progress;
      if (!total) return { text: "downloading" };
      return { text: `downloading, ${formatBytes(done)} of ${formatBytes(total)}`, fraction: done / total };
    }
    case "waiting": {
      const { ahead } = progress;
      return { text: ahead ? `waiting for memory, ${ahead} ${ahead === 1 ? "model" : "models"} ahead` : "waiting for memory" };
    }
    default:
      return { text: "loading into memory" };
  }
}

/** Shows state, size, licence and note of the selected model. */
export function showModelInfo() {
  const model = findModel(select.value);
  if (!model) {
    infoBox.replaceChildren();
    return;
  }
  const state = model.state === "loading" ? loadProgress(model.id).text : STATES[model.state];
  const facts = [
    model.channels && (model.channels === 2 ? "stereo" : "mono"),
    model.parameters && `${formatCount(model.parameters)} parameters`,
    needsDownload(model) && `${formatBytes(model.download_bytes)} to download`,
    model.memory_bytes && `${formatBytes(model.memory_bytes)} of memory`,
    model.license && `licence ${model.license}${NON_COMMERCIAL.test(model.license) ? ", not for commercial use" : ""}`,
  ];
  const line = createElement("p", "");
  line.append(createElement("span", state, { class: `state ${model.state}` }), facts.filter(Boolean).map((fact) => ` · ${fact}`).join(""));
  const note = model.id === "demo" ? demoNote() : createElement("p", model.note ?? "");
  if (infoBox.textContent === line.textContent + note.textContent) return; // keep the elements, one may have the focus
  infoBox.replaceChildren(line, ...(note.textContent ? [note] : []));
}

// The note of the built-in model, with a button that selects a larger one.
function demoNote() {
  const recommended = findModel(RECOMMENDED);
  const note = createElement("p", "A very small model for tests and offline use; it generates synthesised loops in twelve genres. ");
  if (!recommended) {
    note.append("For better music, select a MusicGen model.");
    return note;
  }
  const button = createElement("button", `Use ${shortName(recommended.id)}`, { type: "button", class: "plain", id: "use-recommended" });
  button.addEventListener("click", () => {
    select.value = recommended.id;
    select.focus();
    showModelInfo();
  });
  const download = needsDownload(recommended) ? ` The server downloads it once (${formatBytes(recommended.download_bytes)}).` : "";
  note.append("For better music: ", button, ".", download);
  return note;
}

function fillSelect() {
  const selected = select.value || models.find((model) => model.default)?.id || "";
  const groups = Object.entries(GROUPS).map(([state, label]) => {
    const group = document.createElement("optgroup");
    group.label = label;
    const members = models.filter((model) => model.state === state && !model.conditioning.includes("melody"));
    const size = (model) => (needsDownload(model) ? ` · ${formatBytes(model.download_bytes)}` : "");
    group.append(...members.map((model) => new Option(shortName(model.id) + size(model), model.id)));
    return group;
  });
  select.replaceChildren(...groups.filter((group) => group.childElementCount));
  select.value = selected;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

/** Fetches the list of models, keeps the selection, and repeats while a model is loading. */
export async function refreshModels() {
  clearTimeout(refreshTimer);
  const before = JSON.stringify(models);
  models = await listModels();
  if (JSON.stringify(models) !== before) {
    fillSelect();
    showModelInfo();
    modelEvents.dispatchEvent(new Event("change"));
  }
  if (models.some((model) => model.state === "loading")) refreshTimer = setTimeout(() => refreshModels().catch(() => {}), REFRESH_MS);
}

/** Selects a model by id or alias. An id that is not in the list, from an earlier request, is added. */
export function selectModel(id) {
  const model = findModel(id);
  if (!model && id) select.append(new Option(id, id));
  select.value = model?.id ?? id ?? "";
  showModelInfo();
}

select.addEventListener("change", showModelInfo);
