// Light, dark, or as the system has it.

import { onLanguage, say } from "./language.js";
import { recall, remember } from "./preferences.js";

const ORDER = ["system", "light", "dark"];

/** Make `button` go through the three themes. */
export function startTheme(button) {
  let theme = ORDER.includes(recall("theme")) ? recall("theme") : "system";
  const label = () => {
    button.title = say(`theme_${theme}`);
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    remember("theme", theme);
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    label();
  });
  onLanguage(label);
}
