// What the page is made of. Everything that comes from outside becomes text, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const shown = new Map();

/** Call `make`, which fills the element, if what it is made of has changed: what is being read or selected stays. */
export function when(id, data, make) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  make($(id));
}

/** Forget what is shown, so that all is made anew. */
export const again = () => shown.clear();

export function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

export function tag(text, kind) {
  return el("span", { class: "tag", "data-kind": kind }, text);
}

/** A bar that is filled to a share from 0 to 1. */
export function fill(element, share) {
  element.style.width = `${Math.min(Math.max(share || 0, 0), 1) * 100}%`;
}
