// One answer on its way: asks, gathers the text, waits out a server that is away, and always ends in one state.
// It goes on while the user looks at something else; what shows it listens to its events.

import { streamChat } from "../api/chat_completion.js";
import { ApiError } from "../api/client.js";
import { connection } from "../api/connection.js";

/** Events: "text" (detail: what is new), "state", and "end", which comes once. */
export class Answering extends EventTarget {
  answer;
  #abort = new AbortController();
  #began = 0;

  /** `request` resolves to {model, messages, parameters}; `askForKey` resolves to true once the user gave one. */
  constructor(answer, request, askForKey) {
    super();
    this.answer = answer;
    this.request = request;
    this.askForKey = askForKey;
  }

  /** The user has read enough. */
  stop() {
    this.#abort.abort(new DOMException("stopped by the user", "AbortError"));
  }

  /** Until the answer has ended, however it does; never throws. */
  async run() {
    try {
      await this.#ask();
    } catch (error) {
      if (this.#abort.signal.aborted) this.answer.state = "stopped";
      else this.#fail(error);
    }
    this.dispatchEvent(new CustomEvent("end"));
  }

  async #ask() {
    for (;;) {
      try {
        this.#began = performance.now();
        const end = await streamChat({ ...(await this.request()), signal: this.#abort.signal, onText: (text) => this.#take(text) });
        this.#finish(end);
        return;
      } catch (error) {
        if (this.#abort.signal.aborted) throw error;
        const away = connection.report(error);
        if (this.answer.text) throw error; // asking again would not go on where it broke off: that is the user's choice
        if (away) await this.#waitForServer(error);
        else if (!(error instanceof ApiError && error.status === 401 && (await this.askForKey()))) throw error;
      }
    }
  }

  async #waitForServer(error) {
    this.dispatchEvent(new CustomEvent("state"));
    await connection.back(this.#abort.signal);
    if (error.retryAfter && error.code !== "engine_unavailable") await this.#pause(error.retryAfter); // ready, but full
  }

  #pause(seconds) {
    return new Promise((resolve, reject) => {
      setTimeout(resolve, seconds * 1000);
      this.#abort.signal.addEventListener("abort", () => reject(this.#abort.signal.reason), { once: true });
    });
  }

  #take(text) {
    const first = !this.answer.text;
    this.answer.text += text;
    this.dispatchEvent(new CustomEvent("text", { detail: text }));
    if (!first) return;
    this.answer.firstSeconds = this.#seconds();
    this.answer.state = "streaming";
    this.dispatchEvent(new CustomEvent("state"));
  }

  #finish({ finishReason, usage }) {
    Object.assign(this.answer, { state: "done", finishReason, seconds: this.#seconds(), tokens: usage?.completion_tokens ?? null });
  }

  #fail(error) {
    this.answer.state = "failed";
    this.answer.problem = error instanceof ApiError ? error.message : "broke_off";
  }

  #seconds() {
    return (performance.now() - this.#began) / 1000;
  }
}
