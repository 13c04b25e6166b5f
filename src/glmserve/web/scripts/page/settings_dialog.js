// Sampling parameters, the system message and the API key.  An empty field leaves the choice to the server.

import { apiKey, setApiKey } from "../api/client.js";
import { recall, remember } from "./preferences.js";

const NUMBERS = ["temperature", "top_p", "max_tokens"];

/** What the user set, as a chat request takes it: {system, parameters}. */
export function sampling() {
  const { system = "", ...parameters } = recall("sampling", {});
  return { system, parameters };
}

/** Wire the dialog.  `defaults` gives the server's own values, to show where nothing is set. */
export function startSettings(defaults) {
  const dialog = document.getElementById("settings-dialog");
  const form = dialog.querySelector("form");
  const show = () => {
    const { system, parameters } = sampling();
    form.elements.system.value = system;
    form.elements.api_key.value = apiKey();
    for (const name of NUMBERS) {
      form.elements[name].value = parameters[name] ?? "";
      form.elements[name].placeholder = defaults()[name] ?? "";
    }
  };
  document.getElementById("open-settings").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  document.getElementById("reset-settings").addEventListener("click", () => {
    remember("sampling", null);
    show();
  });
  form.addEventListener("submit", () => save(form));
}

function save(form) {
  const kept = {};
  const system = form.elements.system.value.trim();
  if (system) kept.system = system;
  for (const name of NUMBERS) {
    if (form.elements[name].value !== "") kept[name] = Number(form.elements[name].value);
  }
  remember("sampling", kept);
  setApiKey(form.elements.api_key.value.trim());
}
