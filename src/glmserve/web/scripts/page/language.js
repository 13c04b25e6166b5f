// The page's words in the browser's language, or in the one the user chose.

import { recall, remember } from "./preferences.js";
import { words as en } from "../words/en.js";
import { reasons as zhReasons, words as zh } from "../words/zh.js";

const LANGUAGES = { en, zh };
const REASONS = { en: {}, zh: zhReasons }; // what the server says in English only
const listeners = [];
let current = pick();

function pick() {
  const chosen = recall("language");
  if (chosen in LANGUAGES) return chosen;
  const preferred = navigator.languages.find((tag) => tag.slice(0, 2).toLowerCase() in LANGUAGES);
  return preferred ? preferred.slice(0, 2).toLowerCase() : "en";
}

/** "en" or "zh". */
export function language() {
  return current;
}

/** The words for `key`, with {name} replaced by values.name. */
export function say(key, values = {}) {
  return fill(LANGUAGES[current][key] ?? LANGUAGES.en[key] ?? key, values);
}

/** Why a request was slow, in this language; null where only the server's own sentence says it. */
export function sayReason(cause, values) {
  const text = REASONS[current][cause];
  return text ? fill(text, values) : null;
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Whether there are words for `key`. */
export function canSay(key) {
  return key in LANGUAGES.en;
}

/** Called now and after each switch. */
export function onLanguage(listener) {
  listeners.push(listener);
  listener();
}

/** To the other language. */
export function switchLanguage() {
  current = current === "en" ? "zh" : "en";
  remember("language", current);
  for (const listener of listeners) listener();
}

/** Put words into all that carries data-say, data-say-label or data-say-placeholder under `root`. */
export function translate(root) {
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of root.querySelectorAll("[data-say-placeholder]")) node.placeholder = say(node.dataset.sayPlaceholder);
  for (const node of root.querySelectorAll("[data-say-label]")) {
    const label = say(node.dataset.sayLabel);
    node.setAttribute("aria-label", label);
    if (node.matches("button")) node.title = label;
  }
}
