// The chat: which conversation is shown, what is being written, and what the user does with it.

import { connection } from "../api/connection.js";
import { onLanguage, say } from "../page/language.js";
import { announce, toast } from "../page/toast.js";
import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { addAnswer, addQuestion, closeOpenAnswers, cutFrom, newConversation, promptBefore } from "./conversation.js";
import { showConversations } from "./conversation_list.js";
import { MessageList } from "./message_list.js";
import { showWelcome } from "./welcome.js";

const KEEP_EVERY_MS = 1000; // how often an answer is kept while it is written

export class ChatView {
  #messages = new MessageList((message) => this.#again(message), (message, text) => this.#edit(message, text));
  #messageNode = document.getElementById("messages");
  #welcome = document.getElementById("welcome");
  #list = document.getElementById("conversation-list");
  #tab = document.getElementById("chat-tab");
  #running = new Map(); // conversation id -> Answering
  #conversations = []; // newest first
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
    document.getElementById("new-chat").addEventListener("click", () => this.#openNew());
    addEventListener("pagehide", () => this.#keepRunning());
    document.addEventListener("visibilitychange", () => this.#keepRunning());
    connection.addEventListener("change", () => this.#showMessages());
  }

  /** Read what this browser kept; then the page may show it. */
  async load() {
    this.#conversations = await this.archive.all();
    this.#conversations.forEach(closeOpenAnswers);
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
    this.#showAll();
  }

  /** End the answer that is being written here. */
  stop() {
    this.#running.get(this.#current.id)?.stop();
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

  #again(message) {
    const conversation = this.#current;
    cutFrom(conversation, conversation.messages.indexOf(message));
    this.#answer(conversation, addAnswer(conversation));
  }

  #edit(message, text) {
    const conversation = this.#current;
    if (this.#running.has(conversation.id)) {
      toast(say("wait_for_answer"));
      return;
    }
    cutFrom(conversation, conversation.messages.indexOf(message));
    this.#answer(conversation, addQuestion(conversation, text));
  }

  async #answer(conversation, answer) {
    const answering = new Answering(answer, () => this.#requestFor(conversation, answer), this.askForKey);
    this.#running.set(conversation.id, answering);
    this.#sort();
    this.#keep(conversation);
    const keeping = setInterval(() => this.#keep(conversation), KEEP_EVERY_MS);
    answering.addEventListener("text", ({ detail }) => this.#messages.append(answer, detail));
    answering.addEventListener("state", () => {
      this.#keep(conversation);
      this.#showMessages();
    });
    this.#showList();
    this.#showMessages();
    this.#messages.follow();
    announce(say("answering"));
    await answering.run();
    clearInterval(keeping);
    this.#running.delete(conversation.id);
    this.#keep(conversation);
    this.#showList();
    this.#showMessages();
    if (conversation === this.#current) announce(say(`heard_${answer.state}`));
  }

  async #requestFor(conversation, answer) {
    const { system, parameters } = this.sampling();
    const messages = promptBefore(conversation, conversation.messages.indexOf(answer), system);
    return { model: await this.currentModel(), messages, parameters };
  }

  #showAll() {
    this.#messages.clear();
    this.#showList();
    this.#showMessages();
  }

  #showMessages() {
    const answering = this.#running.has(this.#current.id);
    this.#showWelcome();
    this.#messages.show(this.#current.messages, { answering, waiting: connection.state === "ok" ? "" : "will_ask_again" });
    this.composer.setAnswering(answering);
  }

  #showWelcome() {
    const empty = this.#current.messages.length === 0;
    if (empty) showWelcome(this.#welcome, this.#about, (text) => this.#ask(text));
    this.#welcome.hidden = !empty;
    this.#messageNode.hidden = empty;
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
    const undo = async () => {
      this.#conversations.push(conversation);
      this.#sort();
      await this.#keep(conversation); // what is listed again outlives the page
      this.#showList();
    };
    toast(say("deleted"), { label: say("undo"), run: undo });
  }

  #sort() {
    this.#conversations.sort((a, b) => b.changedAt - a.changedAt);
  }

  async #keep(conversation) {
    if (!this.#conversations.includes(conversation)) return; // deleted while it was being written
    try {
      await this.archive.put(conversation);
    } catch {
      toast(say("not_kept"));
    }
  }

  #keepRunning() {
    for (const conversation of this.#conversations) if (this.#running.has(conversation.id)) this.#keep(conversation);
  }
}

function hashOf(conversation) {
  return conversation.messages.length ? `#/chat/${conversation.id}` : "#/chat";
}
