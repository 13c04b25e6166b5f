// The sidebar as a drawer on a narrow screen; on a wide one it simply stands there.

const narrow = matchMedia("(max-width: 760px)");

/** Wire the drawer; it closes by its button, a tap beside it, Esc, and when something in it was chosen. */
export function startSidebar() {
  const sidebar = document.getElementById("sidebar");
  const shade = document.getElementById("sidebar-shade");
  const opener = document.getElementById("open-sidebar");
  const show = (open) => {
    if (open === sidebar.classList.contains("open")) return;
    sidebar.classList.toggle("open", open);
    shade.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    if (open) document.getElementById("new-chat").focus();
    else if (sidebar.contains(document.activeElement)) opener.focus();
  };
  opener.setAttribute("aria-expanded", "false");
  opener.addEventListener("click", () => show(true));
  shade.addEventListener("click", () => show(false));
  document.getElementById("close-sidebar").addEventListener("click", () => show(false));
  narrow.addEventListener("change", () => show(false));
  addEventListener("hashchange", () => show(false));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(false);
  });
}
