// How things are said.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const seconds = (value) => `${number.format(value)} s`;
export const gigabytes = (bytes) => (bytes >= 1e8 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);
export const clock = (value) => `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")}`;

export function about(value) {
  if (value < 1) return "a moment";
  if (value < 90) return `about ${Math.ceil(value)} s`;
  return `about ${Math.round(value / 60)} min`;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// Text with `code` in it.
const marked = (text) => text.split("`").map((part, at) => (at % 2 ? element("code", part) : part));

// The server's messages may begin with the name of their field.
function sentence({ message, field }) {
  const begun = field && message.startsWith(field) ? message.charAt(0).toUpperCase() + message.slice(1) : message;
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

// Elements of an error: its message, its hint, its code.
export function fault(error) {
  const wait = error.retry_after ? ` Come back in ${about(error.retry_after)}.` : "";
  return [element("strong", sentence(error)), " ", ...marked(error.hint ?? ""), `${wait} `, element("code", error.code)];
}
