// A question on the page; it can be copied, and changed and asked again.

import { copyText } from "../markdown/nodes.js";
import { element, iconButton } from "../page/element.js";
import { say } from "../page/language.js";

export class QuestionView {
  node;

  /** `onEdit` gets the new text. */
  constructor(message, onEdit) {
    this.message = message;
    this.onEdit = onEdit;
    this.node = element("article", { class: "message user", "data-id": message.id });
    this.#show();
  }

  update() {}

  #show() {
    this.editButton = iconButton("edit", say("edit"), () => this.#edit());
    const actions = element("div", { class: "actions" }, iconButton("copy", say("copy"), () => copyText(this.message.text)), this.editButton);
    this.node.classList.remove("editing");
    this.node.replaceChildren(
      element("h2", { class: "only-heard", text: say("you") }),
      element("div", { class: "message-text", text: this.message.text }),
      element("div", { class: "message-foot" }, actions),
    );
  }

  #edit() {
    const cancel = () => {
      this.#show();
      this.editButton.focus();
    };
    const form = editorOf(this.message.text, this.onEdit, cancel);
    this.node.classList.add("editing");
    this.node.replaceChildren(form);
    form.querySelector("textarea").focus();
  }
}

function editorOf(text, save, cancel) {
  const field = element("textarea", { rows: Math.min(12, text.split("\n").length + 1), "aria-label": say("edit") });
  field.value = text;
  const buttons = element(
    "div",
    { class: "dialog-buttons" },
    element("button", { class: "plain-button", type: "button", text: say("cancel"), on: { click: cancel } }),
    element("button", { class: "main-button", type: "submit", text: say("send") }),
  );
  const form = element("form", { class: "editor" }, field, buttons);
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
