// The messages of one conversation on the page.  It follows the newest as long as its reader does, and draws a long
// conversation newest first, a few milliseconds a frame, so that it never holds up the page.

import { isOpen } from "./conversation.js";
import { AnswerView } from "./answer_view.js";
import { QuestionView } from "./question_view.js";

const AT_END_PX = 60;
const AT_ONCE = 6; // messages that are drawn before the time is looked at
const FRAME_MS = 10;

export class MessageList {
  #scroll = document.getElementById("message-scroll");
  #list = document.getElementById("messages");
  #toEnd = document.getElementById("to-the-end");
  #views = new Map(); // message -> its view
  #messages = [];
  #status = { answering: false, waiting: "" };
  #atEnd = true; // the newest is followed
  #scrollTop = 0;

  /** `onAgain` and `onEdit` get the message, and `onEdit` the new text. */
  constructor(onAgain, onEdit) {
    this.onAgain = onAgain;
    this.onEdit = onEdit;
    this.#scroll.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    this.#toEnd.addEventListener("click", () => this.follow());
    // a message's true height is known only once it comes into view: the end moves, and is followed
    new ResizeObserver(() => this.#atEnd && this.follow()).observe(this.#list);
  }

  /** Show another conversation, or the same in other words. */
  clear() {
    this.#views.clear();
    this.#list.replaceChildren();
    this.#atEnd = true;
  }

  /** Show `messages`; `answering`: the last one is being written; `waiting`: why nothing comes yet, or "". */
  show(messages, status) {
    this.#messages = messages;
    this.#status = status;
    const wanted = new Set(messages);
    for (const [message, view] of this.#views) {
      if (wanted.has(message)) continue;
      view.node.remove();
      this.#views.delete(message);
    }
    this.#draw();
  }

  /** More text for the message, where it is shown. */
  append(message, text) {
    this.#views.get(message)?.append(text);
  }

  /** Go to the newest, and stay there. */
  follow() {
    this.#atEnd = true;
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  #draw() {
    const began = performance.now();
    let drawn = 0;
    let below = null;
    for (const message of this.#messages.toReversed()) {
      let view = this.#views.get(message);
      if (!view) {
        if (drawn >= AT_ONCE && performance.now() - began > FRAME_MS) {
          requestAnimationFrame(() => this.#draw());
          return;
        }
        drawn += 1;
        view = this.#make(message);
        this.#list.insertBefore(view.node, below);
      }
      view.update(this.#statusOf(message));
      below = view.node;
    }
    if (this.#atEnd) this.follow();
  }

  #make(message) {
    const view =
      message.role === "user"
        ? new QuestionView(message, (text) => this.onEdit(message, text))
        : new AnswerView(message, () => this.onAgain(message), () => this.#afterDrawing());
    this.#views.set(message, view);
    return view;
  }

  #statusOf(message) {
    const last = message === this.#messages.at(-1);
    return { canAgain: last && !this.#status.answering, waiting: last && isOpen(message) && !message.text ? this.#status.waiting : "" };
  }

  #afterDrawing() {
    if (this.#atEnd) this.follow();
    else this.#toEnd.hidden = false;
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    if (scrollHeight - scrollTop - clientHeight < AT_END_PX) this.#atEnd = true;
    else if (scrollTop < this.#scrollTop) this.#atEnd = false; // only a reader goes up
    this.#scrollTop = scrollTop;
    this.#toEnd.hidden = this.#atEnd;
  }
}
