// The dashboard: reads /metrics as Prometheus would, and shows what it says.

import { ApiError, call } from "../api/client.js";
import { connection } from "../api/connection.js";
import { element } from "../page/element.js";
import { canSay, onLanguage, say } from "../page/language.js";
import { UNKNOWN, bytes, count, duration, percent } from "../page/numbers.js";
import { Exposition } from "./exposition.js";
import { Figure } from "./figure.js";
import { History } from "./history.js";
import { ACTIVITIES, readingOf } from "./reading.js";
import { SlowRequests } from "./slow_requests.js";
import { TimeChart } from "./time_chart.js";

const SHOWN_MS = 1000; // how often /metrics is read while the dashboard is looked at
const HIDDEN_MS = 5000; // and while the chat is: so that the charts have a past when one looks
const SLOW_MS = 5000;
const WINDOW = 300;

export class DashboardView {
  #root = document.getElementById("dashboard-view");
  #history = new History();
  #timer = null;
  #readAt = -Infinity;
  #slowAt = -Infinity;
  #reading = false;

  /** `askForKey` resolves to true once the user gave an API key. */
  constructor(askForKey) {
    this.askForKey = askForKey;
    onLanguage(() => this.#build());
    document.addEventListener("visibilitychange", () => this.#tick());
    this.#timer = setInterval(() => this.#tick(), SHOWN_MS);
  }

  /** Look at it, or away. */
  setShown(shown) {
    this.#root.hidden = !shown;
    if (shown) {
      this.#readAt = -Infinity;
      this.#tick();
      this.#draw();
    }
  }

  async #tick() {
    const now = performance.now();
    const every = this.#root.hidden ? HIDDEN_MS : SHOWN_MS;
    if (document.hidden || this.#reading || now - this.#readAt < every - SHOWN_MS / 2) return;
    this.#reading = true;
    this.#readAt = now;
    try {
      const text = await (await call("metrics")).text();
      this.#history.add(readingOf(new Exposition(text), Date.now() / 1000));
    } catch (error) {
      if (!(error instanceof ApiError)) connection.report(error);
    } finally {
      this.#reading = false;
    }
    if (this.#root.hidden) return;
    this.#draw();
    if (now - this.#slowAt >= SLOW_MS) {
      this.#slowAt = now;
      this.slow.refresh();
    }
  }

  #build() {
    this.figures = {
      running: new Figure("running", say("requests_running")),
      outputRate: new Figure("output_rate", say("output_speed")),
      firstToken: new Figure("first_token", say("first_token")),
      interToken: new Figure("inter_token", say("between_tokens")),
      mbu: new Figure("mbu", say("bandwidth"), { bar: true }),
      kv: new Figure("kv", say("kv_cache"), { bar: true }),
    };
    this.time = new TimeChart({ series: ACTIVITIES.map(activitySeries), format: percent, seconds: WINDOW, height: 200, top: 1, stacked: true });
    this.legend = element("div", { class: "legend" });
    this.charts = [
      chartOf("speed_chart", count, { output: "outputRate", prompt: "promptRate" }),
      chartOf("load_chart", count, { running: "running", waiting: "waiting" }),
      chartOf("first_token", duration, { median: "firstTokenMedian", p99_name: "firstTokenP99" }),
      chartOf("between_tokens", duration, { median: "interTokenMedian", p99_name: "interTokenP99" }),
      chartOf("utilization_chart", percent, { memory_bandwidth_short: "mbu", arithmetic_short: "mfu" }),
      chartOf("kv_cache", percent, { in_use: "kv" }),
    ];
    this.gpus = element("div", { class: "gpus" });
    this.service = element("dl", { class: "facts in-a-row" });
    this.slow = new SlowRequests(this.askForKey);
    this.#slowAt = -Infinity;
    const timeHead = element("div", { class: "card-head" }, element("h2", { text: say("device_time") }));
    const timeCard = element("section", { class: "card wide" }, timeHead, element("p", { class: "card-note", text: say("device_time_note") }), this.time.node, this.legend);
    const serviceCard = element("section", { class: "card wide" }, element("h2", { text: say("service") }), this.service);
    this.#root.replaceChildren(
      element("div", { class: "board" }, element("div", { class: "figures-row" }, ...Object.values(this.figures).map(({ node }) => node)), timeCard,
        ...this.charts.map(({ node }) => node), this.slow.node, this.gpus, serviceCard),
    );
    this.#draw();
  }

  #draw() {
    const { last, points } = this.#history;
    if (!last || this.#root.hidden) return;
    this.#showFigures(last);
    this.time.draw(points);
    this.#showLegend();
    for (const { chart } of this.charts) chart.draw(points);
    this.#showService(last);
    this.gpus.hidden = !last.gpus.length;
    this.gpus.replaceChildren(...last.gpus.map(gpuCard));
  }

  #showFigures(last) {
    const { running, outputRate, firstToken, interToken, mbu, kv } = this.figures;
    const missing = (value, note) => (value === null ? say("not_reported") : note);
    const rates = { output: this.#history.rate("outputTokens"), prompt: this.#history.rate("promptTokens") };
    running.show(last.running, count(last.running), missing(last.running, say("requests_waiting", { n: count(last.waiting) })));
    outputRate.show(rates.output, count(rates.output), say("input_speed", { n: count(rates.prompt) }));
    for (const [figure, name] of [[firstToken, "firstToken"], [interToken, "interToken"]]) {
      const { median, p99, sinceStart } = this.#history.latency(name);
      const note = [say("median"), say("p99", { time: duration(p99) }), say(sinceStart ? "since_start" : "last_minute")].join(" · ");
      figure.show(median, duration(median), median === null ? "" : note);
    }
    mbu.show(last.mbu, percent(last.mbu), missing(last.mbu, `${say("of_peak")} · ${say("arithmetic", { share: percent(last.mfu) })}`));
    kv.show(last.kv, percent(last.kv), missing(last.kv, say("preemptions", { n: count(last.preemptions) })));
  }

  #showLegend() {
    const shares = this.#history.shares();
    const entries = shares
      ? ACTIVITIES.map((name) =>
          element("span", { class: shares[name] < 0.0005 ? "legend-entry faint" : "legend-entry" }, element("i", { class: `swatch back-${name}` }), say(name),
            element("b", { text: percent(shares[name]), "data-activity": name })))
      : [element("span", { class: "card-note", text: say(Object.keys(this.#history.last.activity).length ? "reading" : "not_reported") })];
    this.legend.replaceChildren(...entries);
    if (shares) this.time.describe(ACTIVITIES.filter((name) => shares[name] > 0).map((name) => `${say(name)} ${percent(shares[name])}`).join(", "));
  }

  #showService(last) {
    const reasons = Object.entries(last.done).filter(([, number]) => number > 0);
    const total = reasons.reduce((sum, [, number]) => sum + number, 0);
    const byReason = reasons.map(([reason, number]) => `${canSay(`done_${reason}`) ? say(`done_${reason}`) : reason} ${count(number)}`).join(", ");
    const facts = [
      ["requests_done", "done", total, byReason ? `${count(total)} (${byReason})` : count(total)],
      ["output_total", "output_tokens", last.outputTokens, count(last.outputTokens)],
      ["prompt_total", "prompt_tokens", last.promptTokens, count(last.promptTokens)],
      ["requests_rejected", "rejected", last.rejected, count(last.rejected)],
      ["engine_restarts", "restarts", last.restarts, count(last.restarts)],
    ];
    this.service.replaceChildren(...facts.flatMap(([key, name, value, text]) => fact(say(key), text, { "data-figure": name, "data-value": value })));
  }
}

function activitySeries(name) {
  return { name, title: say(name), value: (point) => point.shares?.[name] ?? null };
}

/** A card with one or two lines: {words: field of a point}. */
function chartOf(title, format, lines) {
  const names = ["first", "second"];
  const series = Object.entries(lines).map(([words, field], index) => ({
    name: names[index],
    title: say(words),
    value: (point) => point[field],
  }));
  const chart = new TimeChart({ series, format, seconds: WINDOW, most: format === percent ? 1 : Infinity });
  chart.describe(say(title));
  const legend = series.map(({ name, title: text }) => element("span", { class: "legend-entry" }, element("i", { class: `swatch back-${name}` }), text));
  const head = element("div", { class: "card-head" }, element("h2", { text: say(title) }), element("div", { class: "legend" }, ...legend));
  return { chart, node: element("section", { class: "card" }, head, chart.node) };
}

function gpuCard(gpu) {
  const clock = gpu.clock === null ? UNKNOWN : `${(gpu.clock / 1e6).toFixed(0)} MHz`;
  const temperature = gpu.temperature === null ? UNKNOWN : `${count(gpu.temperature)} °C`;
  const facts = [
    ["device_utilization", percent(gpu.utilization)],
    ["device_memory", `${bytes(gpu.memoryUsed)} / ${bytes(gpu.memoryTotal)}`],
    ["device_power", `${count(gpu.power)} / ${count(gpu.powerLimit)} W`],
    ["device_clock", clock],
    ["device_temperature", temperature],
    ["device_throttle", gpu.throttles.join(", ") || say("device_not_throttled")],
  ];
  const list = element("dl", { class: "facts" }, ...facts.flatMap(([key, text]) => fact(say(key), text)));
  return element("section", { class: "card" }, element("h2", { text: gpu.name ?? say("device", { gpu: gpu.gpu }), title: gpu.gpu }), list);
}

function fact(title, text, marks = {}) {
  return [element("div", {}, element("dt", { text: title }), element("dd", { text, ...marks }))];
}
