// Helpers for the document.

export const byId = (id) => document.getElementById(id);

/**
 * Creates an element.
 * @param {string} name tag name
 * @param {string} text
 * @param {Object<string, string>} attributes
 */
export function createElement(name, text, attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
}
