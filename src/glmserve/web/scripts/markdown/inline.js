// The inside of a line of Markdown: emphasis, code, links.  Gives plain data; nodes.js makes nodes of it.
//
// A span is a string, {kind: "strong"|"em"|"del", spans}, {kind: "code", text}, {kind: "link", url, spans} or {kind: "break"}.
// HTML is text here.  Emphasis asks only that its marks hug the text, since the usual rule fails beside Chinese punctuation.

const SAFE_PROTOCOLS = ["http:", "https:", "mailto:"];
const MARKS = [
  { mark: "***", wrap: (spans) => ({ kind: "strong", spans: [{ kind: "em", spans }] }) },
  { mark: "**", wrap: (spans) => ({ kind: "strong", spans }) },
  { mark: "__", wrap: (spans) => ({ kind: "strong", spans }), wholeWords: true },
  { mark: "~~", wrap: (spans) => ({ kind: "del", spans }) },
  { mark: "*", wrap: (spans) => ({ kind: "em", spans }) },
  { mark: "_", wrap: (spans) => ({ kind: "em", spans }), wholeWords: true },
];
const BARE_URL = /https?:\/\/[^\s<>"'`，。；：！？、（）「」《》【】]+/y;
const LINK_LABEL = /!?\[((?:\\.|[^[\]\\]){0,2000})\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\)){1,2000})>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const TEXT = /[^\\`*_~[!h\n]+/y; // what can begin nothing
const WORD = /[\p{L}\p{N}]/u;
const MAX_DEPTH = 12;

/** Spans of `text`. */
export function parseInline(text, depth = 0) {
  return new InlineParser(text, depth).parse();
}

/** `url` where it may be followed, else null: no javascript:, no data:, nothing relative. */
export function safeUrl(url) {
  try {
    return SAFE_PROTOCOLS.includes(new URL(url).protocol) ? url : null;
  } catch {
    return null;
  }
}

class InlineParser {
  #text;
  #depth;
  #position = 0;
  #plain = "";
  #spans = [];
  #unclosed = new Set(); // marks of which no end was found: not searched for again, or a line of stars takes for ever

  constructor(text, depth) {
    this.#text = text;
    this.#depth = depth;
  }

  parse() {
    while (this.#position < this.#text.length) {
      this.#escape() || this.#code() || this.#link() || this.#bareUrl() || this.#emphasis() || this.#lineBreak() || this.#character();
    }
    this.#flush();
    return this.#spans;
  }

  #escape() {
    if (this.#text[this.#position] !== "\\") return false;
    const next = this.#text[this.#position + 1];
    if (next === undefined || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.#plain += next;
    this.#position += 2;
    return true;
  }

  #code() {
    if (this.#text[this.#position] !== "`") return false;
    const fence = this.#match(/`+/y)[0];
    const begin = this.#position + fence.length;
    const end = this.#unclosed.has(fence) ? -1 : findRun(this.#text, fence, begin);
    if (end < 0) {
      this.#unclosed.add(fence);
      this.#plain += fence;
      this.#position = begin;
      return true;
    }
    this.#push({ kind: "code", text: this.#text.slice(begin, end).replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1") }, end + fence.length);
    return true;
  }

  /** Links; an image becomes a link too, since the page fetches nothing from elsewhere. */
  #link() {
    const first = this.#text[this.#position];
    if (first !== "[" && !(first === "!" && this.#text[this.#position + 1] === "[")) return false;
    const found = this.#match(LINK_LABEL);
    const url = found && safeUrl(found[2]);
    if (!url) return false;
    const spans = found[1] ? this.#inner(found[1].replace(/\\([[\]])/g, "$1")) : [url];
    this.#push({ kind: "link", url, spans }, this.#position + found[0].length);
    return true;
  }

  #bareUrl() {
    if (this.#text[this.#position] !== "h") return false;
    const found = this.#match(BARE_URL);
    if (!found) return false;
    const url = found[0].replace(/[.,;:!?*_~)\]]+$/, (tail) => (tail.startsWith(")") && found[0].includes("(") ? ")" : ""));
    if (!safeUrl(url)) return false;
    this.#push({ kind: "link", url, spans: [url] }, this.#position + url.length);
    return true;
  }

  #emphasis() {
    if (!"*_~".includes(this.#text[this.#position]) || this.#depth >= MAX_DEPTH) return false;
    for (const { mark, wrap, wholeWords } of MARKS) {
      if (!this.#text.startsWith(mark, this.#position) || this.#unclosed.has(mark)) continue;
      const begin = this.#position + mark.length;
      if (/\s|^$/.test(this.#text[begin] ?? "")) continue;
      if (wholeWords && WORD.test(this.#text[this.#position - 1] ?? "")) continue;
      const end = findEnd(this.#text, mark, begin, wholeWords);
      if (end < 0) {
        this.#unclosed.add(mark);
        continue;
      }
      this.#push(wrap(this.#inner(this.#text.slice(begin, end))), end + mark.length);
      return true;
    }
    const run = this.#match(/\*+|_+|~+/y)[0];
    this.#plain += run;
    this.#position += run.length;
    return true;
  }

  #lineBreak() {
    if (this.#text[this.#position] !== "\n") return false;
    this.#plain = this.#plain.replace(/( +|\\)$/, "");
    this.#push({ kind: "break" }, this.#position + 1);
    return true;
  }

  #character() {
    const text = this.#match(TEXT)?.[0] ?? this.#text[this.#position];
    this.#plain += text;
    this.#position += text.length;
    return true;
  }

  #inner(text) {
    return parseInline(text, this.#depth + 1);
  }

  #push(span, position) {
    this.#flush();
    this.#spans.push(span);
    this.#position = position;
  }

  #flush() {
    if (this.#plain) this.#spans.push(this.#plain);
    this.#plain = "";
  }

  #match(pattern) {
    pattern.lastIndex = this.#position;
    return pattern.exec(this.#text);
  }
}

/** Where `fence`, and not a longer run of it, comes next; -1 if nowhere. */
function findRun(text, fence, from) {
  for (let at = text.indexOf(fence, from); at >= 0; ) {
    let end = at;
    while (text[end] === fence[0]) end += 1;
    if (end - at === fence.length) return at;
    at = text.indexOf(fence, end);
  }
  return -1;
}

/** Where the text that `mark` opened before `from` ends; -1 if nowhere.  Marks inside code do not count. */
function findEnd(text, mark, from, wholeWords) {
  for (let at = from; at < text.length; ) {
    const character = text[at];
    if (character === "\\") {
      at += 2;
    } else if (character === "`") {
      const fence = /`+/y;
      fence.lastIndex = at;
      const run = fence.exec(text)[0];
      const end = findRun(text, run, at + run.length);
      at = end < 0 ? at + run.length : end + run.length;
    } else if (character === mark[0]) {
      let end = at;
      while (text[end] === character) end += 1;
      if (closes(text, mark, at, end, from, wholeWords)) return end - at === 3 ? (mark.length === 3 ? at : end - mark.length) : at;
      at = end;
    } else {
      at += 1;
    }
  }
  return -1;
}

function closes(text, mark, at, end, from, wholeWords) {
  const length = end - at;
  if (at === from || /\s/.test(text[at - 1])) return false;
  if (wholeWords && WORD.test(text[end] ?? "")) return false;
  return length === mark.length || length === 3;
}
