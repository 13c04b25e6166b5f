// Asks for the API key when the server wants one.

import { apiKey, setApiKey } from "../api/client.js";

let asking = null; // several requests may be refused at the same time: they wait for one answer

/** Resolves to true once the user gave a key, to false where they would not. */
export function askForKey() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

function ask() {
  const dialog = document.getElementById("key-dialog");
  const field = dialog.querySelector("input");
  field.value = apiKey();
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  return new Promise((resolve) => {
    document.getElementById("cancel-key").onclick = () => dialog.close();
    dialog.onclose = () => {
      const given = dialog.returnValue === "save" && field.value.trim() !== "";
      if (given) setApiKey(field.value.trim());
      resolve(given);
    };
  });
}
