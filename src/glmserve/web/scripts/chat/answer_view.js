// An answer on the page, from its first letter to its end: its text, how it ended, and what may be done with it.
// The text is drawn once: when the answer ends only what stands below it changes.

import { copyText } from "../markdown/nodes.js";
import { StreamedMarkdown } from "../markdown/streamed.js";
import { element, iconButton } from "../page/element.js";
import { canSay, say } from "../page/language.js";
import { count, duration } from "../page/numbers.js";
import { isOpen } from "./conversation.js";

export class AnswerView {
  node;
  #markdown;
  #problem = element("div", { class: "message-problem", hidden: true });
  #foot = element("div", { class: "message-foot" });
  #shown = "";

  /** `onAgain` asks for the answer anew; `onDraw` is called after each drawing. */
  constructor(message, onAgain, onDraw) {
    this.message = message;
    this.onAgain = onAgain;
    const heading = element("h2", { class: "only-heard", text: say("assistant") });
    const text = element("div", { class: "message-text markdown" });
    this.node = element("article", { class: "message assistant", "data-id": message.id }, heading, text, this.#problem, this.#foot);
    this.#markdown = new StreamedMarkdown(text, onDraw);
    if (message.text) this.append(message.text);
    if (!isOpen(message)) this.#markdown.finish();
  }

  /** More text has come. */
  append(text) {
    this.#markdown.append(text);
  }

  /** Show the message's state.  `canAgain`: it may be asked for anew; `waiting`: why nothing comes yet, or "". */
  update({ canAgain, waiting }) {
    const now = JSON.stringify([this.message.state, canAgain, waiting]);
    if (now === this.#shown) return;
    this.#shown = now;
    const open = isOpen(this.message);
    if (!open) this.#markdown.finish();
    this.node.classList.toggle("streaming", open);
    this.node.setAttribute("aria-busy", String(open));
    this.#showProblem(canAgain, waiting);
    this.#showFoot(open, canAgain);
  }

  #showProblem(canAgain, waiting) {
    const { state, problem } = this.message;
    const reason = waiting || { stopped: "stopped_by_you", failed: problem }[state] || "";
    this.#problem.hidden = !reason;
    this.#problem.classList.toggle("mild", state !== "failed");
    this.#problem.replaceChildren(element("span", { text: canSay(reason) ? say(reason) : reason }));
    if (canAgain && state === "failed") this.#problem.append(element("button", { type: "button", text: say("try_again"), on: { click: this.onAgain } }));
  }

  #showFoot(open, canAgain) {
    this.#foot.replaceChildren();
    if (open) return;
    const actions = element("div", { class: "actions" }, iconButton("copy", say("copy"), () => copyText(this.message.text)));
    if (canAgain) actions.append(iconButton("again", say("again"), this.onAgain));
    this.#foot.append(actions, element("span", { class: "figures", text: figures(this.message) }));
  }
}

function figures({ tokens, seconds, firstSeconds, finishReason }) {
  if (!tokens || firstSeconds === undefined) return "";
  const parts = [say("tokens", { n: count(tokens) })];
  const writing = seconds - firstSeconds;
  if (tokens > 1 && writing > 0) parts.push(say("tokens_a_second", { n: count((tokens - 1) / writing) }));
  parts.push(say("first_after", { time: duration(firstSeconds) }));
  if (finishReason === "length") parts.push(say("cut_at_limit"));
  return parts.join(" · ");
}
