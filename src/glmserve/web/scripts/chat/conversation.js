// A conversation as plain data, ready to be kept and to be sent.  Knows no page and no server.
//
// {id, title, changedAt, messages: [{id, role, text, ...}]}; an answer also has `state` and, once it ended, `problem`,
// `finishReason`, `tokens`, `seconds`, `firstSeconds`.
//   state: "waiting" (nothing has come yet), "streaming", "done", "stopped" (by the user) or "failed"

const TITLE_LENGTH = 48;
const OPEN_STATES = ["waiting", "streaming"];

/** An empty conversation. */
export function newConversation() {
  return { id: newId(), title: "", changedAt: Date.now(), messages: [] };
}

/** Add a question, and the place for its answer, which is returned. */
export function addQuestion(conversation, text) {
  conversation.messages.push({ id: newId(), role: "user", text });
  conversation.title ||= titleOf(text);
  return addAnswer(conversation);
}

/** Drop message number `index` and all after it. */
export function cutFrom(conversation, index) {
  conversation.messages.length = index;
  conversation.changedAt = Date.now();
  if (index === 0) conversation.title = "";
}

/** A place for the answer to the last question. */
export function addAnswer(conversation) {
  const answer = { id: newId(), role: "assistant", text: "", state: "waiting" };
  conversation.messages.push(answer);
  conversation.changedAt = Date.now();
  return answer;
}

/** What to send for the answer at `index`: the system message and all before it that says something. */
export function promptBefore(conversation, index, system) {
  const head = system ? [{ role: "system", content: system }] : [];
  const said = conversation.messages.slice(0, index).filter((message) => message.text);
  return [...head, ...said.map(({ role, text }) => ({ role, content: text }))];
}

/** Is an answer still being written? */
export function isOpen(message) {
  return OPEN_STATES.includes(message.state);
}

/** After a reload nothing is being written any more: what was under way counts as broken off. */
export function closeOpenAnswers(conversation) {
  for (const message of conversation.messages) {
    if (isOpen(message)) {
      message.state = "failed";
      message.problem = "page_closed";
    }
  }
}

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH)}…` : line;
}

function newId() {
  // crypto.randomUUID is missing where the page comes over plain http from another machine
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
