/** Elements and numbers as the page shows them. Text of files only ever becomes text nodes. */

/** An element: `h("p", { class: "hint" }, "text", child)`. Functions become event listeners, `true` an empty attribute. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  return fill(element, ...children);
}

/** Gives an element these children; what is null, undefined or false is none. */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children.filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const count = new Intl.NumberFormat("en");

export const integer = (n) => count.format(n);

/** Bytes in decimal units, as disks and the `endor` command have them. */
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let value = n;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[unit]}`;
}

export const bits = (n) => (n === null || !Number.isFinite(n) ? "–" : n.toFixed(2));

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

export const shape = (sizes) =>
  sizes.length ? sizes.slice(0, 8).join(" × ") + (sizes.length > 8 ? " × …" : "") : "scalar";
