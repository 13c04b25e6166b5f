// What this browser remembers of its user's choices: theme, language, sampling, the API key.  Conversations are in chat/archive.js.

const PREFIX = "glmserve.";
const unsaved = new Map(); // for a browser that lets the page store nothing

/** The value kept under `name`, or `fallback`. */
export function recall(name, fallback = null) {
  try {
    const kept = localStorage.getItem(PREFIX + name);
    return kept === null ? (unsaved.get(name) ?? fallback) : JSON.parse(kept);
  } catch {
    return unsaved.get(name) ?? fallback;
  }
}

/** Keep a value; null forgets it. */
export function remember(name, value) {
  unsaved.set(name, value);
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // kept until the page is closed
  }
}
