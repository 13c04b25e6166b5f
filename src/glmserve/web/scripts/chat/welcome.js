// What an empty conversation shows: the model's name, and questions it can answer.

import { element } from "../page/element.js";
import { language, say } from "../page/language.js";

/** Fill `container`; `about` is /web/page.json, or null while it is not known. */
export function showWelcome(container, about, onChoose) {
  const questions = about?.suggestions?.[language()] ?? about?.suggestions?.en ?? [];
  const buttons = questions.map(({ text, hint }) =>
    element("button", { class: "suggestion", type: "button", on: { click: () => onChoose(text) } }, text, hint ? element("small", { text: hint }) : null),
  );
  container.replaceChildren(
    element("img", { src: "web/icon.svg", alt: "", width: "54", height: "54" }),
    element("h1", { text: say("welcome") }),
    element("p", { text: about ? say("welcome_model", { model: about.model }) : " " }),
    element("div", { class: "suggestions" }, ...buttons),
  );
}
