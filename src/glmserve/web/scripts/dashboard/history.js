// The readings of the last minutes, and what follows from two of them: rates, shares of time, quantiles.
// A counter that fell means that the server or its engine was started anew: nothing is told of the time between.

import { quantile } from "./quantile.js";
import { ACTIVITIES } from "./reading.js";

const KEEP_SECONDS = 300;
const WINDOW_SECONDS = 60; // of quantiles
const NOW_SECONDS = 5; // of rates shown as a number, so that it can be read

export class History {
  /** Points to draw: {time, running, waiting, outputRate, promptRate, mbu, mfu, kv, shares, firstTokenMedian, firstTokenP99, ...}. */
  points = [];
  #readings = [];

  /** Take a reading. */
  add(reading) {
    const before = this.#readings.at(-1);
    if (before && restarted(before, reading)) this.#readings = [];
    this.#readings.push(reading);
    this.points.push(pointOf(this.#readings.at(-2) ?? null, reading));
    const oldest = reading.time - KEEP_SECONDS;
    while (this.#readings[0].time < oldest) this.#readings.shift();
    while (this.points[0].time < oldest) this.points.shift();
  }

  /** The last reading; null before the first. */
  get last() {
    return this.#readings.at(-1) ?? null;
  }

  /** Growth a second of a counter, over the last seconds; null where it cannot be told. */
  rate(name) {
    return rateOf(name, this.#since(NOW_SECONDS), this.last);
  }

  /** Shares of time over all that is kept; null where not reported. */
  shares() {
    const first = this.#readings[0];
    return first === this.last ? null : sharesOf(first, this.last);
  }

  /** {median, p99, sinceStart} of a histogram: of the last minute, or of all where nothing happened in it. */
  latency(name) {
    const buckets = this.last?.[name] ?? [];
    const before = this.#since(WINDOW_SECONDS);
    const recent = before && quantile(0.5, buckets, before[name]);
    const earlier = recent === null ? null : before[name];
    return { median: quantile(0.5, buckets, earlier), p99: quantile(0.99, buckets, earlier), sinceStart: earlier === null };
  }

  /** The newest reading that is at least `seconds` old, or the oldest; null where there is only one. */
  #since(seconds) {
    if (this.#readings.length < 2) return null;
    const time = this.last.time - seconds;
    return this.#readings.findLast((reading) => reading.time <= time) ?? this.#readings[0];
  }
}

function restarted(before, now) {
  const total = (reading) => (reading.outputTokens ?? 0) + Object.values(reading.done).reduce((sum, count) => sum + count, 0);
  const time = (reading) => Object.values(reading.activity).reduce((sum, seconds) => sum + seconds, 0);
  return total(now) < total(before) || time(now) < time(before);
}

function pointOf(before, now) {
  return {
    time: now.time,
    running: now.running,
    waiting: now.waiting,
    mbu: now.mbu,
    mfu: now.mfu,
    kv: now.kv,
    outputRate: rateOf("outputTokens", before, now),
    promptRate: rateOf("promptTokens", before, now),
    shares: before && sharesOf(before, now),
    ...spreadOf("firstToken", before, now),
    ...spreadOf("interToken", before, now),
  };
}

/** {nameMedian, nameP99} of what was counted between two readings. */
function spreadOf(name, before, now) {
  const at = (share) => before && quantile(share, now[name], before[name]);
  return { [`${name}Median`]: at(0.5), [`${name}P99`]: at(0.99) };
}

function rateOf(name, before, now) {
  if (!before || before === now || before[name] === null || now[name] === null) return null;
  return (now[name] - before[name]) / (now.time - before.time);
}

/** {activity: share}, summing to 1; null where not reported or nothing passed. */
function sharesOf(before, now) {
  const grown = ACTIVITIES.map((name) => [name, Math.max(0, (now.activity[name] ?? 0) - (before.activity[name] ?? 0))]);
  const total = grown.reduce((sum, [, seconds]) => sum + seconds, 0);
  return total > 0 ? Object.fromEntries(grown.map(([name, seconds]) => [name, seconds / total])) : null;
}
