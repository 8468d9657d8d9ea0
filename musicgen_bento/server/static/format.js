// Formatting of values and errors as text.

import { createElement } from "./dom.js";

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const formatSeconds = (value) => `${number.format(value)} s`;
export const formatBytes = (bytes) => (bytes >= 1e8 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);
export const formatClock = (value) => `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")}`;

/** Formats a duration in seconds as an estimate. */
export function formatApproximate(value) {
  if (value < 1) return "a moment";
  if (value < 90) return `about ${Math.ceil(value)} s`;
  return `about ${Math.round(value / 60)} min`;
}

// Splits text at backticks; every second part is code.
const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? createElement("code", part) : part));

// A validation message of the server begins with the name of its field; as a sentence it begins with a capital.
function toSentence({ message, field }) {
  const text = field && message.startsWith(field) ? message.charAt(0).toUpperCase() + message.slice(1) : message;
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** Returns the nodes that show an error: message, hint, retry time and code. */
export function errorNodes(error) {
  const retry = error.retry_after ? ` Retry in ${formatApproximate(error.retry_after)}.` : "";
  return [createElement("strong", toSentence(error)), " ", ...withCode(error.hint ?? ""), `${retry} `, createElement("code", error.code)];
}
