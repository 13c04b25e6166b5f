// A number on the dashboard: what it is, its value, a line below, and, for a share, a bar.

import { element } from "../page/element.js";
import { UNKNOWN } from "../page/numbers.js";

export class Figure {
  #value = element("div", { class: "figure-value" });
  #note = element("div", { class: "figure-note" });
  #bar = element("div", { class: "figure-bar-fill" });

  /** `name` marks the value for those who look for it in the page; `bar` shows a share as one. */
  constructor(name, title, { bar = false } = {}) {
    this.#value.dataset.figure = name;
    const below = element("div", {}, bar ? element("div", { class: "figure-bar", "aria-hidden": "true" }, this.#bar) : null, this.#note);
    this.node = element("div", { class: "card figure" }, element("div", { class: "figure-title", text: title }), this.#value, below);
  }

  /** `raw` is the number itself, `text` how it is read. */
  show(raw, text, note = "") {
    this.#value.textContent = text;
    this.#value.dataset.value = raw === null ? "" : String(raw);
    this.#value.classList.toggle("unknown", text === UNKNOWN);
    this.#note.textContent = note;
    this.#bar.style.width = `${Math.min(1, raw ?? 0) * 100}%`;
  }
}
