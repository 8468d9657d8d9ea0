// The form: reads and fills the settings, and shows each error at its field.

import { ApiError } from "./api.js";
import { byId } from "./dom.js";
import { errorNodes } from "./format.js";
import { selectModel } from "./model_select.js";

const NUMBERS = ["duration", "seed", "temperature", "cfg_coef", "top_k", "top_p"];
const ADVANCED = ["temperature", "cfg_coef", "top_k", "top_p", "normalize"];
const FIELDS = ["prompt", "model", ...NUMBERS, "normalize"];

const defaultOf = (field) => field.defaultValue ?? field.querySelector("[selected]")?.value;
const labelOf = (name) => document.querySelector(`label[for="${name}"]`).firstChild.textContent.trim();

/** Returns the request of the form: prompt, model, duration, and every setting that differs from its default. */
export function readRequest() {
  const request = { prompt: byId("prompt").value };
  if (byId("model").value) request.model = byId("model").value;
  for (const name of NUMBERS) {
    const field = byId(name);
    if (field.validity.badInput) {
      throw new ApiError({ code: "invalid", message: `${labelOf(name)} should be a number.`, field: name });
    }
    if (field.value !== "" && (name === "duration" || field.value !== defaultOf(field))) request[name] = Number(field.value);
  }
  if (byId("normalize").value !== defaultOf(byId("normalize"))) request.normalize = byId("normalize").value;
  return request;
}

export function fillForm(request) {
  byId("prompt").value = request.prompt;
  selectModel(request.model);
  byId("seed").value = request.seed ?? "";
  for (const name of ["duration", ...ADVANCED]) byId(name).value = request[name] ?? defaultOf(byId(name));
  if (ADVANCED.some((name) => name in request)) byId("advanced").open = true;
  clearErrors();
}

export function clearErrors() {
  byId("error").hidden = true;
  for (const name of FIELDS) {
    byId(`${name}-error`).hidden = true;
    byId(`${name}-error`).replaceChildren(); // the field's aria-describedby reads a hidden element too
    byId(name).removeAttribute("aria-invalid");
  }
}

/** Shows an error at the field that it names, or below the form. */
export function showError(error) {
  clearErrors();
  if (!FIELDS.includes(error.field)) {
    byId("error").replaceChildren(...errorNodes(error));
    byId("error").hidden = false;
    byId("error").scrollIntoView({ block: "nearest" });
    return;
  }
  if (ADVANCED.includes(error.field)) byId("advanced").open = true;
  byId(`${error.field}-error`).replaceChildren(...errorNodes(error));
  byId(`${error.field}-error`).hidden = false;
  byId(error.field).setAttribute("aria-invalid", "true");
  byId(error.field).focus();
}

for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    byId("prompt").value = button.dataset.prompt;
    byId("prompt").focus();
  });
}
for (const button of document.querySelectorAll("[data-duration]")) {
  button.addEventListener("click", () => {
    byId("duration").value = button.dataset.duration;
  });
}
byId("defaults").addEventListener("click", () => {
  for (const name of ADVANCED) byId(name).value = defaultOf(byId(name));
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
