// The chat: which conversation is shown, what is being written, and what the user does with it.

import { connection } from "../api/connection.js";
import { onLanguage, say } from "../page/language.js";
import { announce, toast } from "../page/toast.js";
import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { addAnswer, addQuestion, closeOpenAnswers, cutFrom, isOpen, newConversation, promptBefore } from "./conversation.js";
import { showConversations } from "./conversation_list.js";
import { StreamingAnswer, messageNode } from "./message_view.js";
import { showWelcome } from "./welcome.js";

const KEEP_EVERY_MS = 1000; // how often an answer is kept while it is written
const AT_END_PX = 60;

export class ChatView {
  #scroll = document.getElementById("message-scroll");
  #messages = document.getElementById("messages");
  #welcome = document.getElementById("welcome");
  #toEnd = document.getElementById("to-the-end");
  #list = document.getElementById("conversation-list");
  #tab = document.getElementById("chat-tab");
  #running = new Map(); // conversation id -> Answering
  #streaming = null; // StreamingAnswer of the conversation that is shown
  #atEnd = true; // the newest is followed
  #scrollTop = 0;
  #conversations = [];
  #current = newConversation();
  #about = null;

  /**
   * `sampling` gives {system, parameters}; `askForKey` resolves to true once the user gave an API key; `currentModel` to the
   * name of the model that the server serves now.
   */
  constructor(archive, { sampling, askForKey, currentModel }) {
    this.archive = archive;
    this.sampling = sampling;
    this.askForKey = askForKey;
    this.currentModel = currentModel;
    this.composer = new Composer((text) => this.#ask(text), () => this.stop());
    this.#scroll.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    // a message's true height is known only once it comes into view: the end moves, and is followed
    new ResizeObserver(() => this.#atEnd && this.#scrollToEnd(true)).observe(this.#messages);
    this.#toEnd.addEventListener("click", () => this.#scrollToEnd(true));
    document.getElementById("new-chat").addEventListener("click", () => this.#openNew());
    addEventListener("pagehide", () => this.#keepAll());
    document.addEventListener("visibilitychange", () => this.#keepAll());
    connection.addEventListener("change", () => this.#showWaiting());
  }

  /** Read what this browser kept; then the page may show it. */
  async load() {
    const kept = await this.archive.all();
    kept.forEach(closeOpenAnswers);
    this.#conversations = [...this.#conversations, ...kept];
    onLanguage(() => this.#showAll());
  }

  /** What the server says of its model. */
  setAbout(about) {
    this.#about = about;
    this.#showWelcome();
  }

  /** Show a conversation by its id; without one, or with one that is gone, a new one. */
  show(id) {
    if (id === this.#current.id || (!id && !this.#current.messages.length)) return;
    this.#current = this.#conversations.find((conversation) => conversation.id === id) ?? newConversation();
    this.#atEnd = true;
    this.#showAll();
  }

  /** End the answer that is being written here. */
  stop() {
    this.#running.get(this.#current.id)?.stop();
  }

  get answering() {
    return this.#running.has(this.#current.id);
  }

  #openNew() {
    this.show(null);
    location.hash = "#/chat";
    this.composer.focus();
  }

  #ask(text) {
    const conversation = this.#current;
    const answer = addQuestion(conversation, text);
    if (!this.#conversations.includes(conversation)) this.#conversations.unshift(conversation);
    history.replaceState(null, "", hashOf(conversation));
    this.#answer(conversation, answer);
  }

  #again(conversation, index) {
    cutFrom(conversation, index);
    this.#dropNodesFrom(index);
    this.#answer(conversation, addAnswer(conversation));
  }

  #edit(conversation, index, text) {
    if (this.#running.has(conversation.id)) {
      toast(say("wait_for_answer"));
      return;
    }
    cutFrom(conversation, index);
    this.#dropNodesFrom(index);
    this.#answer(conversation, addQuestion(conversation, text));
  }

  async #answer(conversation, answer) {
    this.#conversations.sort((a, b) => b.changedAt - a.changedAt);
    const index = conversation.messages.indexOf(answer);
    const request = async () => {
      const { system, parameters } = this.sampling();
      return { model: await this.currentModel(), messages: promptBefore(conversation, index, system), parameters };
    };
    const answering = new Answering(answer, request, this.askForKey);
    this.#running.set(conversation.id, answering);
    this.#atEnd = true;
    this.#keep(conversation);
    const keeping = setInterval(() => this.#keep(conversation), KEEP_EVERY_MS);
    this.#follow(conversation, answering);
    this.#showList();
    this.#showFrom(index - 2); // the answer before this one can no longer be asked for again
    announce(say("answering"));
    await answering.run();
    clearInterval(keeping);
    this.#running.delete(conversation.id);
    this.#keep(conversation);
    this.#showEnd(conversation, answer);
  }

  #follow(conversation, answering) {
    answering.addEventListener("text", ({ detail }) => {
      if (conversation === this.#current) this.#streaming?.markdown.append(detail);
    });
    answering.addEventListener("state", () => {
      this.#keep(conversation);
      if (conversation === this.#current) this.#showWaiting();
    });
  }

  #showAll() {
    this.#showList();
    this.#showFrom(0);
  }

  /** Draw the conversation from message number `first` on: what stands before it in a long one is left alone. */
  #showFrom(first) {
    this.#showWelcome();
    this.#streaming = null;
    this.#dropNodesFrom(Math.max(0, first));
    const rest = this.#current.messages.slice(this.#messages.children.length);
    const offset = this.#messages.children.length;
    this.#messages.append(...rest.map((message, index) => this.#node(message, offset + index)));
    this.#showWaiting();
    this.composer.setAnswering(this.answering);
    this.#scrollToEnd(this.#atEnd);
  }

  #dropNodesFrom(index) {
    while (this.#messages.children.length > index) this.#messages.lastChild.remove();
  }

  #showEnd(conversation, answer) {
    this.#showList();
    if (conversation !== this.#current) return;
    this.#showFrom(conversation.messages.indexOf(answer));
    announce(say(`heard_${answer.state}`));
  }

  #node(message, index) {
    const conversation = this.#current;
    if (isOpen(message) && this.answering) {
      this.#streaming = new StreamingAnswer(message, () => this.#scrollToEnd(this.#atEnd));
      return this.#streaming.node;
    }
    const last = index === conversation.messages.length - 1;
    return messageNode(message, {
      again: last && !this.answering ? () => this.#again(conversation, index) : null,
      edit: (text) => this.#edit(conversation, index, text),
    });
  }

  #showWaiting() {
    const answer = this.#running.get(this.#current.id)?.answer;
    if (!answer || !this.#streaming) return;
    const away = connection.state !== "ok" && answer.state === "waiting";
    this.#streaming.waitFor(away ? say("will_ask_again") : "");
  }

  #showWelcome() {
    const empty = this.#current.messages.length === 0;
    this.#welcome.hidden = !empty;
    this.#messages.hidden = empty;
    if (empty) showWelcome(this.#welcome, this.#about, (text) => this.#ask(text));
  }

  #showList() {
    this.#tab.href = hashOf(this.#current); // back from the dashboard to where one was
    showConversations(this.#list, this.#conversations, this.#current.id, {
      isAnswering: (conversation) => this.#running.has(conversation.id),
      onDelete: (conversation) => this.#delete(conversation),
    });
  }

  #delete(conversation) {
    this.#running.get(conversation.id)?.stop();
    this.#conversations = this.#conversations.filter((other) => other !== conversation);
    this.archive.remove(conversation.id);
    if (conversation === this.#current) this.#openNew();
    this.#showList();
    const undo = () => {
      this.#conversations = [...this.#conversations, conversation].sort((a, b) => b.changedAt - a.changedAt);
      this.#keep(conversation);
      this.#showList();
    };
    toast(say("deleted"), { label: say("undo"), run: undo });
  }

  async #keep(conversation) {
    if (!this.#conversations.includes(conversation)) return; // deleted while it was being written
    try {
      await this.archive.put(conversation);
    } catch {
      toast(say("not_kept"));
    }
  }

  #keepAll() {
    for (const conversation of this.#conversations) if (this.#running.has(conversation.id)) this.#keep(conversation);
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    if (scrollHeight - scrollTop - clientHeight < AT_END_PX) this.#atEnd = true;
    else if (scrollTop < this.#scrollTop) this.#atEnd = false; // only a user goes up
    this.#scrollTop = scrollTop;
    this.#toEnd.hidden = this.#atEnd;
  }

  #scrollToEnd(wanted) {
    this.#atEnd = wanted;
    if (wanted) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    else this.#toEnd.hidden = false;
  }
}

function hashOf(conversation) {
  return conversation.messages.length ? `#/chat/${conversation.id}` : "#/chat";
}
