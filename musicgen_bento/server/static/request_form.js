// The form: settings in, settings out, and each error at the field it names.

import { Failure } from "./api.js";
import * as models from "./model_select.js";
import { fault } from "./format.js";

const NUMBERS = ["duration", "seed", "temperature", "cfg_coef", "top_k", "top_p"];
const ADVANCED = ["temperature", "cfg_coef", "top_k", "top_p", "normalize"];
const FIELDS = ["prompt", "model", ...NUMBERS, "normalize"];

const at = (id) => document.getElementById(id);
const initial = (field) => field.defaultValue ?? field.querySelector("[selected]")?.value;

// What would be sent: nothing that is left at its default, but always a length.
export function request() {
  const asked = { prompt: at("prompt").value };
  if (at("model").value) asked.model = at("model").value;
  for (const name of NUMBERS) {
    const field = at(name);
    if (field.validity.badInput) throw new Failure({ code: "invalid", message: `${labelOf(name)} should be a number.`, field: name });
    if (field.value !== "" && (name === "duration" || field.value !== initial(field))) asked[name] = Number(field.value);
  }
  if (at("normalize").value !== initial(at("normalize"))) asked.normalize = at("normalize").value;
  return asked;
}

const labelOf = (name) => document.querySelector(`label[for="${name}"]`).firstChild.textContent.trim();

export function fill(asked) {
  at("prompt").value = asked.prompt;
  models.choose(asked.model);
  at("seed").value = asked.seed ?? "";
  for (const name of ["duration", ...ADVANCED]) at(name).value = asked[name] ?? initial(at(name));
  if (ADVANCED.some((name) => name in asked)) at("advanced").open = true;
  clear();
}

export function clear() {
  at("error").hidden = true;
  for (const name of FIELDS) {
    at(`${name}-error`).hidden = true;
    at(`${name}-error`).replaceChildren(); // hidden or not, it describes its field
    at(name).removeAttribute("aria-invalid");
  }
}

export function show(error) {
  clear();
  if (!FIELDS.includes(error.field)) {
    at("error").replaceChildren(...fault(error));
    at("error").hidden = false;
    at("error").scrollIntoView({ block: "nearest" });
    return;
  }
  if (ADVANCED.includes(error.field)) at("advanced").open = true;
  at(`${error.field}-error`).replaceChildren(...fault(error));
  at(`${error.field}-error`).hidden = false;
  at(error.field).setAttribute("aria-invalid", "true");
  at(error.field).focus();
}

for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    at("prompt").value = button.dataset.prompt;
    at("prompt").focus();
  });
}
for (const button of document.querySelectorAll("[data-duration]")) {
  button.addEventListener("click", () => {
    at("duration").value = button.dataset.duration;
  });
}
at("defaults").addEventListener("click", () => {
  for (const name of ADVANCED) at(name).value = initial(at(name));
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
