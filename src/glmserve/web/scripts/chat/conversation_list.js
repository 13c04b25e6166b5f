// The conversations in the sidebar, newest first, under the day of their last change.

import { element, iconButton } from "../page/element.js";
import { language, say } from "../page/language.js";

const DAY = 86_400_000;

/** Fill `container`.  `isAnswering` tells of a conversation whether something is being written in it. */
export function showConversations(container, conversations, currentId, { isAnswering, onDelete }) {
  const nodes = [];
  let day = null;
  for (const conversation of conversations) {
    const label = dayOf(conversation.changedAt);
    if (label !== day) nodes.push(element("div", { class: "conversation-day", text: label }));
    day = label;
    nodes.push(entry(conversation, conversation.id === currentId, isAnswering(conversation), onDelete));
  }
  container.replaceChildren(...nodes);
}

function entry(conversation, current, answering, onDelete) {
  const title = conversation.title || say("new_chat");
  const link = element("a", { href: `#/chat/${conversation.id}`, text: title, title, "aria-current": current ? "page" : null });
  const remove = iconButton("delete", say("delete_named", { title }), () => onDelete(conversation));
  return element("div", { class: answering ? "conversation answering" : "conversation" }, link, remove);
}

function dayOf(time) {
  const days = Math.floor((startOfDay(Date.now()) - startOfDay(time)) / DAY);
  if (days <= 0) return say("today");
  if (days === 1) return say("yesterday");
  return new Date(time).toLocaleDateString(language() === "zh" ? "zh-CN" : "en", { year: "numeric", month: "short", day: "numeric" });
}

function startOfDay(time) {
  return new Date(time).setHours(0, 0, 0, 0);
}
