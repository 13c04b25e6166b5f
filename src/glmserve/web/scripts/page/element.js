// Makes DOM nodes.  The page has no other way to make one: text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `properties` are attributes, but `text`, `class` and `on` (listeners by event).  Null and false leave an attribute out. */
export function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element, likewise. */
export function shape(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  return shape("svg", { "aria-hidden": "true" }, shape("use", { href: `#icon-${name}` }));
}

/** A button that shows an icon and is read aloud as `label`. */
export function iconButton(name, label, onClick) {
  return element("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, on: { click: onClick } }, icon(name));
}

function fill(node, { text, class: className, on = {}, ...attributes }, children) {
  if (className) node.setAttribute("class", className);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
