// Prometheus' text format, read in the browser: what /metrics says, with labels.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** All series of one scrape, found by name. */
export class Exposition {
  #series = new Map(); // name -> [{labels, value}]

  constructor(text) {
    for (const line of text.split("\n")) {
      const found = line && line[0] !== "#" && LINE.exec(line);
      if (!found) continue;
      const value = found[3] === "+Inf" ? Infinity : Number(found[3]);
      if (!this.#series.has(found[1])) this.#series.set(found[1], []);
      this.#series.get(found[1]).push({ labels: labelsOf(found[2] ?? ""), value });
    }
  }

  /** [{labels, value}] of a metric; empty where it is not reported. */
  series(name) {
    return this.#series.get(name) ?? [];
  }

  /** All series of a metric together, over engines; null where it is not reported. */
  sum(name) {
    const all = this.series(name);
    return all.length ? all.reduce((total, { value }) => total + value, 0) : null;
  }

  /** The middle of all series of a metric, for shares; null where it is not reported. */
  mean(name) {
    const all = this.series(name);
    return all.length ? this.sum(name) / all.length : null;
  }

  /** The sums by one label's values: {value: sum}. */
  by(name, label) {
    const sums = {};
    for (const { labels, value } of this.series(name)) sums[labels[label]] = (sums[labels[label]] ?? 0) + value;
    return sums;
  }
}

function labelsOf(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(LABEL)) labels[name] = value.replace(/\\[n"\\]/g, (escaped) => ESCAPES[escaped]);
  return labels;
}
