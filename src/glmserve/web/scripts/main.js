// Puts the page together: which view is shown, the model's name, the banner, keys that work everywhere.

import { call } from "./api/client.js";
import { connection } from "./api/connection.js";
import { openArchive } from "./chat/archive.js";
import { ChatView } from "./chat/chat_view.js";
import { DashboardView } from "./dashboard/dashboard_view.js";
import { askForKey } from "./page/key_dialog.js";
import { onLanguage, say, switchLanguage, translate } from "./page/language.js";
import { sampling, startSettings } from "./page/settings_dialog.js";
import { startSidebar } from "./page/sidebar.js";
import { startTheme } from "./page/theme.js";
import { toast } from "./page/toast.js";

let about = null; // /web/page.json
let learning = null; // until it has been read
const archive = await openArchive();
const chat = new ChatView(archive, { sampling, askForKey, currentModel });
const dashboard = new DashboardView(askForKey);

onLanguage(() => translate(document.body));
startTheme(document.getElementById("switch-theme"));
startSidebar();
startSettings(() => about?.defaults ?? {});
document.getElementById("switch-language").addEventListener("click", switchLanguage);
connection.addEventListener("change", (event) => onConnection(event.detail.before));
onLanguage(showConnection);
addEventListener("hashchange", showView);
addEventListener("keydown", (event) => {
  const open = document.querySelector("dialog[open]") || document.querySelector(".sidebar.open");
  if (event.key === "Escape" && !open && !event.isComposing) chat.stop();
});

await chat.load();
showView();
chat.composer.focus();
performance.mark("usable"); // a question can be typed and sent
learning = learnAbout();
await learning;
if (!archive.lasting) toast(say("not_lasting"));
document.documentElement.dataset.ready = "true"; // for those who measure the start

function showView() {
  const [, view, id] = location.hash.split("/");
  const isDashboard = view === "dashboard";
  document.getElementById("chat-view").hidden = isDashboard;
  markCurrent(document.getElementById("chat-tab"), !isDashboard);
  markCurrent(document.getElementById("dashboard-tab"), isDashboard);
  dashboard.setShown(isDashboard);
  if (!isDashboard) chat.show(id ?? null);
}

async function currentModel() {
  await learning;
  return about?.model;
}

function markCurrent(tab, current) {
  if (current) tab.setAttribute("aria-current", "page");
  else tab.removeAttribute("aria-current");
}

async function learnAbout() {
  try {
    about = await (await call("web/page.json")).json();
  } catch (error) {
    connection.report(error);
    return;
  }
  document.getElementById("model-name").textContent = about.model;
  document.getElementById("version").textContent = about.version;
  document.title = `${about.model} · glmserve`;
  chat.setAbout(about);
}

function onConnection(before) {
  showConnection();
  if (connection.state !== "ok" || before === "ok") return;
  toast(say("server_back"));
  learning = learnAbout(); // it may serve another model now
}

function showConnection() {
  const { state, reason } = connection;
  const dot = document.getElementById("connection-dot");
  dot.dataset.state = state;
  dot.setAttribute("aria-label", say(`state_${state}`));
  dot.title = say(`state_${state}`);
  document.getElementById("banner").hidden = state === "ok";
  document.getElementById("banner-text").textContent = state === "ok" ? "" : say(`server_${state}`, { reason });
}
