// DOM nodes of Markdown blocks.  Each is made with createElement and filled with text: a model's answer can hold no markup.

import { element, iconButton } from "../page/element.js";
import { say } from "../page/language.js";
import { toast } from "../page/toast.js";
import { parseInline } from "./inline.js";

const INLINE_TAGS = { strong: "strong", em: "em", del: "del" };

/** The node of one block. */
export function blockNode(block) {
  return MAKERS[block.kind](block);
}

const MAKERS = {
  paragraph: ({ text }) => element("p", {}, ...inlineNodes(text)),
  heading: ({ level, text }) => element(`h${Math.min(level, 4)}`, {}, ...inlineNodes(text)),
  rule: () => element("hr"),
  quote: ({ blocks }) => element("blockquote", {}, ...blocks.map(blockNode)),
  list: ({ ordered, first, items }) => element(ordered ? "ol" : "ul", { start: ordered && first !== 1 ? first : null }, ...items.map(itemNode)),
  table: tableNode,
  code: codeNode,
};

/** Nodes of a text with emphasis, code and links. */
export function inlineNodes(text) {
  return parseInline(text).map(spanNode);
}

/** Copy `text`, and tell the user. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(say("copied"));
  } catch {
    toast(say("copy_failed")); // browsers allow it over https and on localhost only
  }
}

function spanNode(span) {
  if (typeof span === "string") return document.createTextNode(span);
  if (span.kind === "code") return element("code", { text: span.text });
  if (span.kind === "break") return element("br");
  const inner = span.spans.map(spanNode);
  if (span.kind === "link") return element("a", { href: span.url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inner);
  return element(INLINE_TAGS[span.kind], {}, ...inner);
}

function itemNode({ blocks, checked }) {
  const box = checked === null ? [] : [document.createTextNode(checked ? "☑ " : "☐ ")];
  const [first, ...rest] = blocks;
  if (first?.kind !== "paragraph") return element("li", {}, ...box, ...blocks.map(blockNode));
  const loose = rest.some((block) => block.kind === "paragraph");
  const head = loose ? [element("p", {}, ...box, ...inlineNodes(first.text))] : [...box, ...inlineNodes(first.text)];
  return element("li", {}, ...head, ...rest.map(blockNode));
}

function tableNode({ align, head, rows }) {
  const line = (tag) => (row) =>
    element("tr", {}, ...row.map((cell, column) => element(tag, { class: align[column] && `to-${align[column]}` }, ...inlineNodes(cell))));
  const table = element("table", {}, element("thead", {}, line("th")(head)), element("tbody", {}, ...rows.map(line("td"))));
  return element("div", { class: "table" }, table);
}

function codeNode({ language, text }) {
  const code = element("code", { text });
  const copy = iconButton("copy", say("copy_code"), () => copyText(code.textContent));
  return element("figure", { class: "code", "data-language": language }, element("figcaption", {}, element("span", { text: language || say("code") }), copy), element("pre", {}, code));
}
