// A chart over time, drawn as SVG: lines, or areas one on the other.  Pointing at it tells the values at that moment.

import { element, shape } from "../page/element.js";

const MARGIN = { left: 54, right: 8, top: 8, bottom: 20 };
const GAP_SECONDS = 12; // points further apart than this are not joined
const LEAST_SECONDS = 60; // a chart that has just begun is this wide, and grows to its full width

export class TimeChart {
  #canvas = shape("svg", { class: "chart", role: "img" });
  #tip = element("div", { class: "chart-tip", hidden: true });
  #cursor = shape("line", { class: "chart-cursor", visibility: "hidden" });
  #points = [];
  #drawn = null; // {x, from, to} of the last drawing

  /**
   * `series`: [{name, title, value(point)}]; `format` writes a value; `seconds` is the width once there are points for it;
   * `top` a fixed highest value, `most` the highest that can be.
   */
  constructor({ series, format, seconds, height = 170, top = null, most = Infinity, stacked = false }) {
    Object.assign(this, { series, format, seconds, height, top, most, stacked });
    this.node = element("div", { class: "chart-frame" }, this.#canvas, this.#tip);
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#hideTip());
    new ResizeObserver(() => this.draw(this.#points)).observe(this.node);
  }

  /** Draw points, oldest first, each with a `time` in seconds. */
  draw(points) {
    this.#points = points;
    const width = this.node.clientWidth;
    if (!width || !points.length) return;
    const to = points.at(-1).time;
    const span = Math.min(this.seconds, Math.max(LEAST_SECONDS, to - points[0].time));
    const from = to - span;
    const top = this.top ?? Math.min(this.most, niceTop(Math.max(...points.flatMap((point) => this.series.map(({ value }) => value(point) ?? 0)))));
    const x = (time) => MARGIN.left + ((time - from) / span) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => this.height - MARGIN.bottom - (value / top) * (this.height - MARGIN.top - MARGIN.bottom);
    this.#drawn = { x, from, to };
    this.#canvas.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.#canvas.setAttribute("height", this.height);
    const shapes = this.stacked ? this.#areas(points, x, y) : this.#lines(points, x, y);
    this.#canvas.replaceChildren(...this.#axes(width, top, x, y, from, to), ...shapes, this.#cursor);
  }

  /** What the chart shows, for those who cannot see it. */
  describe(text) {
    this.#canvas.setAttribute("aria-label", text);
  }

  #axes(width, top, x, y, from, to) {
    const lines = [0, 0.5, 1].map((share) => {
      const at = y(top * share);
      const text = shape("text", { class: "chart-label", x: MARGIN.left - 7, y: at + 4, "text-anchor": "end", text: this.format(top * share) });
      return [shape("line", { class: "chart-grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }), text];
    });
    const minutes = [];
    const step = to - from <= 2 * LEAST_SECONDS ? 15 : 60;
    const style = { hour: "2-digit", minute: "2-digit", second: step < 60 ? "2-digit" : undefined };
    for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
      const text = new Date(time * 1000).toLocaleTimeString("en-GB", style);
      if (x(time) > MARGIN.left + 12 && x(time) < width - 18) {
        minutes.push(shape("text", { class: "chart-label", x: x(time), y: this.height - 4, "text-anchor": "middle", text }));
      }
    }
    return [...lines.flat(), ...minutes];
  }

  #lines(points, x, y) {
    return this.series.map(({ name, value }) => {
      let path = "";
      let before = null;
      for (const point of points) {
        const at = value(point);
        if (at === null || at === undefined) continue;
        path += `${before !== null && point.time - before <= GAP_SECONDS ? "L" : "M"}${x(point.time).toFixed(1)} ${y(at).toFixed(1)}`;
        before = point.time;
      }
      return shape("path", { class: `chart-line stroke-${name}`, d: path });
    });
  }

  /** One path of columns a series: a point's column reaches back to the point before it, whose time it tells of. */
  #areas(points, x, y) {
    const paths = this.series.map(() => "");
    points.forEach((point, index) => {
      const before = points[index - 1];
      if (!before || point.time - before.time > GAP_SECONDS) return;
      const [left, right] = [x(before.time).toFixed(1), (x(point.time) + 0.3).toFixed(1)];
      let sum = 0;
      this.series.forEach(({ value }, number) => {
        const share = value(point) ?? 0;
        if (share <= 0) return;
        const [low, high] = [y(sum).toFixed(1), y(sum + share).toFixed(1)];
        paths[number] += `M${left} ${low}H${right}V${high}H${left}Z`;
        sum += share;
      });
    });
    return paths.map((d, number) => shape("path", { class: `chart-area fill-${this.series[number].name}`, d }));
  }

  #point(event) {
    const { x, from, to } = this.#drawn ?? {};
    if (!x) return;
    const box = this.#canvas.getBoundingClientRect();
    const along = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    const time = from + along * (to - from);
    const known = this.#points.filter((one) => this.series.some(({ value }) => (value(one) ?? null) !== null));
    if (!known.length) return;
    const point = known.reduce((best, one) => (Math.abs(one.time - time) < Math.abs(best.time - time) ? one : best));
    const rows = this.series
      .map(({ name, title, value }) => ({ name, title, at: value(point) }))
      .filter(({ at }) => at !== null && at !== undefined && (!this.stacked || at > 0.0005))
      .map(({ name, title, at }) => element("div", { class: "chart-tip-row" }, element("i", { class: `swatch back-${name}` }), title, element("b", { text: this.format(at) })));
    this.#tip.replaceChildren(element("div", { text: new Date(point.time * 1000).toLocaleTimeString("en-GB") }), ...rows);
    this.#tip.hidden = false;
    this.#tip.style.left = `${Math.min(Math.max(0, x(point.time) + 12), box.width - this.#tip.offsetWidth)}px`;
    for (const [name, value] of Object.entries({ x1: x(point.time), x2: x(point.time), y1: MARGIN.top, y2: this.height - MARGIN.bottom })) {
      this.#cursor.setAttribute(name, value);
    }
    this.#cursor.setAttribute("visibility", "visible");
  }

  #hideTip() {
    this.#tip.hidden = true;
    this.#cursor.setAttribute("visibility", "hidden");
  }
}

/** The next of 1, 2, 5, 10, 20, ... above a value. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value * 1.02) ?? 20 * power;
}
