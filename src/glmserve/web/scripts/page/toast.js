// A short note at the foot of the page that goes away by itself, with one thing to do about it where there is one.

import { element } from "./element.js";

const SECONDS = 6;

/** Show `text`; `action` is {label, run} or nothing. */
export function toast(text, action = null) {
  const note = element("div", { class: "toast" }, element("span", { text }));
  if (action) {
    const run = () => {
      note.remove();
      action.run();
    };
    note.append(element("button", { type: "button", text: action.label, on: { click: run } }));
  }
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), SECONDS * 1000);
}

/** Say something to those who listen to the page and do not see it. */
export function announce(text) {
  document.getElementById("announcements").textContent = text;
}
