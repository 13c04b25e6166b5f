// Whether the server is there.  Whoever meets a failure reports it; from then on /ready is asked until it says yes.

import { ApiError, ServerGoneError, call } from "./client.js";

const RETRY_MS = 1000;

/** "ok", "loading" (it answers, and cannot serve yet) or "away". */
class Connection extends EventTarget {
  state = "ok";
  reason = "";
  #watching = null;

  /** Did `error` mean that waiting helps?  If so the watch begins. */
  report(error) {
    if (error instanceof ServerGoneError) this.#set("away", "");
    else if (error instanceof ApiError && error.status === 503) this.#set("loading", error.message);
    else return false;
    this.#watching ??= this.#watch().finally(() => (this.#watching = null));
    return true;
  }

  /** Resolves once the server can serve; rejects when `signal` is aborted. */
  async back(signal) {
    const aborted = new Promise((_, reject) => {
      if (signal.aborted) reject(signal.reason);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
    await Promise.race([this.#watching ?? Promise.resolve(), aborted]);
  }

  async #watch() {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      try {
        await call("ready");
        this.#set("ok", "");
        return;
      } catch (error) {
        if (error instanceof ApiError) this.#set("loading", error.message);
        else this.#set("away", "");
      }
    }
  }

  #set(state, reason) {
    if (state === this.state && reason === this.reason) return;
    const before = this.state;
    this.state = state;
    this.reason = reason;
    this.dispatchEvent(new CustomEvent("change", { detail: { before } }));
  }
}

export const connection = new Connection();
