// Markdown that is still being written.  Text is gathered and shown at most once a frame; blocks that are settled are never
// read again and a node whose text did not change is never touched, so a long answer costs no more a token than a short one.
// A last block that is itself slow to draw is drawn less often.

import { blockNode } from "./nodes.js";
import { parseBlocks } from "./blocks.js";

const REST = 4; // after drawing for t, leave the browser at least 4 t for everything else
const AT_ONCE = 2000; // characters drawn at a time: what comes as a flood is drawn over several frames

/** Shows a growing text in `container`.  `onDraw` is called after each drawing. */
export class StreamedMarkdown {
  #container;
  #onDraw;
  #coming = ""; // text that is not drawn yet
  #open = ""; // text behind the settled blocks, as far as it is drawn
  #numSettled = 0; // nodes that are drawn for good
  #drawn = []; // the texts of the nodes behind them
  #frame = null;
  #notBefore = 0;

  constructor(container, onDraw = () => {}) {
    this.#container = container;
    this.#onDraw = onDraw;
  }

  /** More text has come. */
  append(text) {
    this.#coming += text;
    this.#frame ??= requestAnimationFrame(() => this.#onFrame());
  }

  /** No more will come: what is left is drawn now, but for a flood. */
  finish() {
    this.#notBefore = 0;
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#onFrame();
  }

  #onFrame() {
    this.#frame = null;
    const began = performance.now();
    if (began >= this.#notBefore) {
      this.#draw();
      const ended = performance.now();
      this.#notBefore = ended + REST * (ended - began);
    }
    if (this.#coming) this.#frame = requestAnimationFrame(() => this.#onFrame());
  }

  #draw() {
    this.#open += this.#coming.slice(0, AT_ONCE);
    this.#coming = this.#coming.slice(AT_ONCE);
    const blocks = parseBlocks(this.#open);
    const texts = blocks.map(({ end }, index) => this.#open.slice(index ? blocks[index - 1].end : 0, end));
    const same = texts.findIndex((text, index) => text !== this.#drawn[index]);
    const first = same < 0 ? texts.length : same;
    if (!this.#growsCode(blocks, first)) this.#replaceFrom(first, blocks);
    this.#drawn = texts;
    this.#settle(blocks);
    this.#onDraw();
  }

  #replaceFrom(first, blocks) {
    while (this.#container.childNodes.length > this.#numSettled + first) this.#container.lastChild.remove();
    this.#container.append(...blocks.slice(first).map(blockNode));
  }

  /** A program that grows keeps its node, so that a selection or a scroll in it stays. */
  #growsCode(blocks, first) {
    const block = blocks[first];
    const node = this.#container.childNodes[this.#numSettled + first];
    if (first !== blocks.length - 1 || block.kind !== "code" || node?.dataset?.language !== block.language) return false;
    const code = node.querySelector("code");
    const shown = code.textContent;
    if (!block.text.startsWith(shown)) return false;
    code.append(block.text.slice(shown.length));
    return true;
  }

  /** All blocks but the last are settled once the line that began the last one is whole: until then it may still join the one before. */
  #settle(blocks) {
    if (blocks.length < 2) return;
    const end = blocks.at(-2).end;
    if (!this.#open.slice(end).trimStart().includes("\n")) return;
    this.#open = this.#open.slice(end);
    this.#numSettled += blocks.length - 1;
    this.#drawn = [this.#open.slice(0, blocks.at(-1).end - end)];
  }
}
