// One message on the page: its text, what may be done with it, and how it ended.

import { copyText } from "../markdown/nodes.js";
import { StreamedMarkdown, showMarkdown } from "../markdown/streamed.js";
import { element, iconButton } from "../page/element.js";
import { canSay, say } from "../page/language.js";
import { count, duration } from "../page/numbers.js";
import { isOpen } from "./conversation.js";

/** The node of a message.  `acts` has again(), edit(text), each null where it cannot be done. */
export function messageNode(message, acts) {
  return message.role === "user" ? questionNode(message, acts) : answerNode(message, acts);
}

/** The node of an answer that is being written; give it what `Answering` tells. */
export class StreamingAnswer {
  constructor(answer, onDraw) {
    this.text = element("div", { class: "message-text markdown" });
    this.problem = element("div", { class: "message-problem mild", hidden: true });
    const heading = element("h2", { class: "only-heard", text: say("assistant") });
    const foot = element("div", { class: "message-foot" });
    this.node = element("article", { class: "message assistant streaming", "aria-busy": "true", "data-id": answer.id }, heading, this.text, this.problem, foot);
    this.markdown = new StreamedMarkdown(this.text, onDraw);
    if (answer.text) this.markdown.append(answer.text);
  }

  /** Why nothing comes yet; "" where nothing is wrong. */
  waitFor(reason) {
    this.problem.hidden = !reason;
    this.problem.textContent = reason;
  }

  /** The last letters are drawn, at once. */
  finish() {
    this.markdown.finish();
  }
}

function questionNode(message, acts) {
  const node = element("article", { class: "message user", "data-id": message.id });
  const show = () => {
    const actions = element("div", { class: "actions" }, iconButton("copy", say("copy"), () => copyText(message.text)));
    if (acts.edit) actions.append(iconButton("edit", say("edit"), edit));
    node.classList.remove("editing");
    node.replaceChildren(
      element("h2", { class: "only-heard", text: say("you") }),
      element("div", { class: "message-text", text: message.text }),
      element("div", { class: "message-foot" }, actions),
    );
  };
  const edit = () => {
    node.classList.add("editing");
    const editor = editorOf(message.text, acts.edit, () => {
      show();
      node.querySelector('button[aria-label="' + CSS.escape(say("edit")) + '"]')?.focus();
    });
    node.replaceChildren(editor);
    editor.querySelector("textarea").focus();
  };
  show();
  return node;
}

function editorOf(text, save, cancel) {
  const field = element("textarea", { rows: Math.min(12, text.split("\n").length + 1), "aria-label": say("edit") });
  field.value = text;
  const form = element(
    "form",
    { class: "editor" },
    field,
    element(
      "div",
      { class: "dialog-buttons" },
      element("button", { class: "plain-button", type: "button", text: say("cancel"), on: { click: cancel } }),
      element("button", { class: "main-button", type: "submit", text: say("send") }),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) save(field.value);
  });
  form.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    if (event.key !== "Escape") return;
    event.stopPropagation();
    cancel();
  });
  return form;
}

function answerNode(message, acts) {
  const text = element("div", { class: "message-text markdown" });
  showMarkdown(text, message.text);
  const actions = element("div", { class: "actions" }, iconButton("copy", say("copy"), () => copyText(message.text)));
  if (acts.again) actions.append(iconButton("again", say("again"), acts.again));
  const heading = element("h2", { class: "only-heard", text: say("assistant") });
  const foot = element("div", { class: "message-foot" }, actions, element("span", { class: "figures", text: figures(message) }));
  return element("article", { class: "message assistant", "data-id": message.id }, heading, text, problemNode(message, acts), foot);
}

function problemNode(message, acts) {
  if (isOpen(message) || message.state === "done") return null;
  const mild = message.state === "stopped";
  const reason = mild ? "stopped_by_you" : message.problem;
  const node = element("div", { class: mild ? "message-problem mild" : "message-problem" }, element("span", { text: canSay(reason) ? say(reason) : reason }));
  if (acts.again && !mild) node.append(element("button", { type: "button", text: say("try_again"), on: { click: acts.again } }));
  return node;
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
