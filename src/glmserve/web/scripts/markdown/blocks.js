// Markdown's blocks as plain data: what a chat model writes, not all of CommonMark (no HTML, no reference links, no indented code,
// since models indent for many reasons).  A line break in a paragraph stays one: poems depend on it.
//
// A block is {kind, end, ...}, where `end` is the offset of the text after it: "heading" (level, text), "paragraph" (text),
// "code" (language, text, open), "quote" (blocks), "list" (ordered, first, items: [{blocks, checked}]), "table" (align, head,
// rows) or "rule".  A block is settled once another has begun after it, so a stream re-reads the last one only.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const CHECKED = /^\[([ xX])\]\s+/;
const TABLE_LINE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 12;

/** Blocks of `text`. */
export function parseBlocks(text, depth = 0) {
  return new BlockParser(text, depth).parse();
}

class BlockParser {
  #lines;
  #ends = []; // offset behind each line
  #depth;
  #at = 0;

  constructor(text, depth) {
    this.#lines = text.split("\n");
    this.#depth = depth;
    let offset = 0;
    for (const line of this.#lines) {
      offset += line.length + 1;
      this.#ends.push(Math.min(offset, text.length));
    }
  }

  parse() {
    const blocks = [];
    while (this.#skipBlank()) {
      const block = this.#code() ?? this.#heading() ?? this.#rule() ?? this.#quote() ?? this.#list() ?? this.#table() ?? this.#paragraph();
      blocks.push({ ...block, end: this.#ends[this.#at - 1] });
    }
    return blocks;
  }

  get #line() {
    return this.#lines[this.#at];
  }

  get #more() {
    return this.#at < this.#lines.length;
  }

  #skipBlank() {
    while (this.#more && isBlank(this.#line)) this.#at += 1;
    return this.#more;
  }

  #code() {
    const fence = FENCE.exec(this.#line);
    if (!fence) return null;
    const indent = /^ */.exec(this.#line)[0].length;
    const closing = new RegExp(`^ {0,3}${fence[1][0] === "`" ? "`" : "~"}{${fence[1].length},}\\s*$`);
    const lines = [];
    this.#at += 1;
    while (this.#more && !closing.test(this.#line)) {
      lines.push(this.#line.replace(new RegExp(`^ {0,${indent}}`), ""));
      this.#at += 1;
    }
    const open = !this.#more;
    if (!open) this.#at += 1;
    return { kind: "code", language: fence[2].trim().split(/\s/)[0].slice(0, 40), text: lines.join("\n"), open };
  }

  #heading() {
    const heading = HEADING.exec(this.#line);
    if (!heading) return null;
    this.#at += 1;
    return { kind: "heading", level: heading[1].length, text: withoutClosingMarks(heading[2].trim()) };
  }

  #rule() {
    if (!RULE.test(this.#line)) return null;
    this.#at += 1;
    return { kind: "rule" };
  }

  #quote() {
    if (!QUOTE.test(this.#line) || this.#depth >= MAX_DEPTH) return null;
    const lines = [];
    while (this.#more && (QUOTE.test(this.#line) || (!isBlank(this.#line) && !this.#beginsBlock()))) {
      lines.push(this.#line.replace(QUOTE, ""));
      this.#at += 1;
    }
    return { kind: "quote", blocks: parseBlocks(lines.join("\n"), this.#depth + 1) };
  }

  #list() {
    const first = ITEM.exec(this.#line);
    if (!first || this.#depth >= MAX_DEPTH) return null;
    const indent = first[1].length;
    const ordered = /\d/.test(first[2]);
    const items = [];
    while (this.#more) {
      const item = ITEM.exec(this.#line);
      if (!item || item[1].length < indent || /\d/.test(item[2]) !== ordered || RULE.test(this.#line)) break;
      items.push(this.#item(item));
      const here = this.#at;
      if (!this.#skipBlank() || !ITEM.test(this.#line)) {
        this.#at = here; // the blank lines belong to nobody
        break;
      }
    }
    return { kind: "list", ordered, first: ordered ? Number.parseInt(first[2], 10) : 1, items };
  }

  /** What belongs to an item: its line, lines without a gap that begin nothing else, and lines that are indented under it. */
  #item(marker) {
    const inner = marker[1].length + marker[2].length + Math.min(Math.max(marker[3].length, 1), 4);
    const checked = CHECKED.exec(this.#line.slice(marker[0].length));
    const lines = [this.#line.slice(marker[0].length + (checked ? checked[0].length : 0))];
    this.#at += 1;
    while (this.#more) {
      const here = this.#at;
      const gap = isBlank(this.#line);
      if (!this.#skipBlank()) {
        this.#at = here;
        break;
      }
      const depth = /^ */.exec(this.#line)[0].length;
      const under = depth >= Math.min(inner, marker[1].length + 2);
      if (!under && (gap || ITEM.test(this.#line) || this.#beginsBlock())) {
        this.#at = here;
        break;
      }
      if (gap) lines.push("");
      lines.push(this.#line.slice(Math.min(depth, inner)));
      this.#at += 1;
    }
    return { blocks: parseBlocks(lines.join("\n"), this.#depth + 1), checked: checked ? checked[1] !== " " : null };
  }

  #table() {
    const next = this.#lines[this.#at + 1];
    if (!this.#line.includes("|") || next === undefined || !next.includes("-") || !TABLE_LINE.test(next)) return null;
    const head = cells(this.#line);
    const align = cells(next).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
    if (head.length !== align.length) return null;
    this.#at += 2;
    const rows = [];
    while (this.#more && !isBlank(this.#line) && this.#line.includes("|") && !this.#beginsBlock()) {
      const row = cells(this.#line);
      rows.push(head.map((_, column) => row[column] ?? ""));
      this.#at += 1;
    }
    return { kind: "table", align, head, rows };
  }

  #paragraph() {
    const lines = [this.#line.trimStart()];
    this.#at += 1;
    while (this.#more && !isBlank(this.#line) && !this.#beginsBlock() && !ITEM.test(this.#line)) {
      lines.push(this.#line.trimStart());
      this.#at += 1;
    }
    return { kind: "paragraph", text: lines.join("\n").trimEnd() };
  }

  #beginsBlock() {
    return FENCE.test(this.#line) || HEADING.test(this.#line) || RULE.test(this.#line) || QUOTE.test(this.#line);
  }
}

function isBlank(line) {
  return line.trim() === "";
}

/** "Title ##" -> "Title"; "C#" stays. */
function withoutClosingMarks(text) {
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

/** The cells of a table's line; an escaped bar is text. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}
