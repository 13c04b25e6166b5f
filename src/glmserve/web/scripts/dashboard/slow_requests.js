// The list of requests that took long, each with the reason that the server gives (GET /slow).

import { ApiError, call } from "../api/client.js";
import { element } from "../page/element.js";
import { canSay, say, sayReason } from "../page/language.js";
import { count, duration } from "../page/numbers.js";
import { recall, remember } from "../page/preferences.js";

const LIMITS = [0.5, 1, 2, 5, 10];
const LAST = 10;

export class SlowRequests {
  #body = element("div", { class: "slow-body" });
  #over = recall("slow_over", 2);
  #shown = "";

  /** `askForKey` resolves to true once the user gave an API key. */
  constructor(askForKey) {
    this.askForKey = askForKey;
    const choice = element("select", { "aria-label": say("slow_over"), on: { change: (event) => this.#choose(Number(event.target.value)) } });
    for (const limit of LIMITS) choice.append(element("option", { value: limit, text: `${limit} s`, selected: limit === this.#over }));
    const head = element("div", { class: "card-head" }, element("h2", { text: say("slow_requests") }), element("label", { class: "inline" }, say("slow_over"), choice));
    this.node = element("section", { class: "card wide" }, head, this.#body);
  }

  /** Ask the server.  A server that has no such list is told of, not complained about. */
  async refresh() {
    try {
      const response = await call(`slow?over=${this.#over}&last=${LAST}`);
      this.#show((await response.json()).requests);
    } catch (error) {
      if (error instanceof ApiError) this.#explain(error.status);
      else if (!this.#shown) this.#note("reading");
    }
  }

  #choose(limit) {
    this.#over = limit;
    remember("slow_over", limit);
    this.refresh();
  }

  #explain(status) {
    this.#note(status === 401 ? "slow_key" : "slow_missing");
    if (status !== 401) return;
    const ask = async () => {
      if (await this.askForKey()) this.refresh();
    };
    this.#body.append(" ", element("button", { class: "plain-button", type: "button", text: say("enter_key"), on: { click: ask } }));
  }

  #note(key) {
    this.#shown = key;
    this.#body.replaceChildren(element("p", { class: "card-note", text: say(key) }));
  }

  #show(requests) {
    const now = JSON.stringify(requests);
    if (now === this.#shown) return; // a selection in the table stays
    if (!requests.length) {
      this.#note("slow_none");
      return;
    }
    this.#shown = now;
    const heads = ["slow_when", "slow_total", "slow_first", "slow_size", "slow_why"].map((key) => element("th", { text: say(key) }));
    const table = element("table", { class: "slow" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...requests.map(rowOf)));
    this.#body.replaceChildren(element("div", { class: "table" }, table));
  }
}

/** The server's sentence, or what this page says in its place in another language. */
function reasonOf(request) {
  const span = (field) => duration(request[`${field}_seconds`] ?? null);
  const number = (field) => count(request[field] ?? null);
  const values = {
    queue: span("queue"),
    prefill: span("prefill"),
    decode: span("decode"),
    stall: span("prefill_stall"),
    preempted: span("preempted"),
    turn: span("turn"),
    admission: span("admission"),
    tokenize: span("tokenize"),
    client: span("slow_client"),
    e2e: span("e2e"),
    prompt: number("prompt_tokens"),
    fresh: count((request.prompt_tokens ?? 0) - (request.cached_tokens ?? 0)),
    completion: number("completion_tokens"),
    preemptions: number("preemptions"),
    ahead: number("num_ahead"),
  };
  return sayReason(request.cause, values) ?? request.why ?? "";
}

/** The cause in a word, where this page knows it; the sentence beside it is the server's. */
function causeNode(cause) {
  return canSay(`cause_${cause}`) ? element("span", { class: "tag", text: say(`cause_${cause}`) }) : null;
}

/** A narrow screen has no heads of columns: there the figure's name stands before it. */
function figure(key, text) {
  return element("td", { class: "number", text, "data-head": say(key) });
}

function rowOf(request) {
  const when = request.timestamp ? new Date(request.timestamp).toLocaleTimeString("en-GB") : "";
  const cells = [
    element("td", { text: when, title: request.request_id }),
    figure("slow_total", duration(request.e2e_seconds ?? null)),
    figure("slow_first", duration(request.first_token_seconds ?? null)),
    figure("slow_size", `${count(request.prompt_tokens ?? null)} / ${count(request.completion_tokens ?? null)}`),
    element("td", {}, causeNode(request.cause), reasonOf(request)),
  ];
  return element("tr", {}, ...cells);
}
