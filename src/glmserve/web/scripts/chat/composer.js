// The box to write a question in.  Enter sends and Shift+Enter breaks the line, but an Enter that only picks a
// Chinese word from the input method's list does neither.

import { recall, remember } from "../page/preferences.js";

export class Composer {
  #field = document.getElementById("question");
  #send = document.getElementById("send");
  #stop = document.getElementById("stop");

  /** `onSend` gets the text, `onStop` nothing.  A draft survives a reload. */
  constructor(onSend, onStop) {
    this.onSend = onSend;
    this.#field.value = recall("draft", "");
    this.#field.addEventListener("input", () => this.#changed());
    this.#field.addEventListener("keydown", (event) => this.#onKey(event));
    document.getElementById("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#stop.addEventListener("click", onStop);
    new ResizeObserver(() => this.#fit()).observe(this.#field.form); // also when it comes into view
    this.#changed();
  }

  /** Show the stop button in place of the send button, or the other way round. */
  setAnswering(answering) {
    const hadFocus = document.activeElement === this.#send || document.activeElement === this.#stop;
    this.#send.hidden = answering;
    this.#stop.hidden = !answering;
    if (hadFocus) (answering ? this.#stop : this.#field).focus();
  }

  focus() {
    if (matchMedia("(hover: hover)").matches) this.#field.focus(); // on a phone it would bring up the keyboard
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey) return;
    if (event.isComposing || event.keyCode === 229) return; // 229: Safari has ended the composition already
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.#field.value.trim();
    if (!text || this.#send.hidden) return;
    this.#field.value = "";
    this.#changed();
    this.onSend(text);
  }

  #changed() {
    this.#send.disabled = !this.#field.value.trim();
    remember("draft", this.#field.value || null);
    this.#fit();
  }

  #fit() {
    this.#field.style.height = "auto";
    const { scrollHeight } = this.#field; // 0 while the dashboard hides it
    if (scrollHeight) this.#field.style.height = `${scrollHeight}px`;
  }
}
