/** Sparsity of all tensors as a picture: a column for each layer, a row for each kind of tensor. */

import { bytes, h, percent } from "./dom.js";
import { printable } from "./endor.js";
import { sum } from "./model.js";

const MOST_LAYERS = 512;
const MOST_KINDS = 48;

/** Rows of tensors by kind and layer; null if there is nothing to draw, or too much. */
export function cellsOf(rows) {
  const layered = rows.filter((row) => row.layer !== null);
  const layers = [...new Set(layered.map((row) => row.layer))].sort((a, b) => a - b);
  if (layers.length === 0 || layers.length > MOST_LAYERS) return null;
  for (const merge of [(name) => name, (name) => name.replace(/(^|\.)[0-9]+(?=\.)/g, "$1*")]) {
    const kinds = new Map();
    for (const row of layered) {
      const key = JSON.stringify(row.kind.map(merge));
      if (!kinds.has(key))
        kinds.set(key, { prefix: merge(row.kind[0]), name: merge(row.kind[1]), layers: new Map() });
      const kind = kinds.get(key);
      kind.layers.set(row.layer, [...(kind.layers.get(row.layer) ?? []), row]);
    }
    if (kinds.size <= MOST_KINDS) {
      const list = [...kinds.values()];
      const prefixes = new Set(list.map(({ prefix }) => prefix));
      return {
        layers,
        kinds: list.map((kind) => ({
          ...kind,
          label: prefixes.size > 1 ? `${kind.prefix}.*.${kind.name}` : kind.name,
        })),
      };
    }
  }
  return null;
}

/** A cell, the darker the more zeros there are. */
function cell(sparsity, kind, attributes = {}) {
  const element = h("span", {
    class: `cell ${sparsity === null ? "unknown" : "known"} ${kind}`,
    ...attributes,
  });
  if (sparsity !== null) element.style.setProperty("--zeros", sparsity);
  return element;
}

/** The picture as a figure, or null. `select(row)` is called for a tensor that is clicked. */
export function picture(rows, select) {
  const cells = cellsOf(rows);
  if (!cells) return null;
  const { layers, kinds } = cells;
  const step = layers.length <= 24 ? 1 : layers.length <= 64 ? 4 : 16;
  const grid = h("div", { class: "layers", "aria-hidden": "true" });
  grid.style.setProperty("--layers", layers.length);
  const totals = layers.map((layer) => sum(kinds.flatMap((kind) => kind.layers.get(layer) ?? [])));
  const largest = Math.max(...totals.map((total) => total.denseBytes), 1);

  grid.append(h("span", { class: "name" }, "size"));
  totals.forEach((total, i) => {
    const bar = h(
      "span",
      {
        class: "size",
        title: `layer ${layers[i]}: ${bytes(total.bytes)} in the file, ${bytes(total.denseBytes)} dense`,
      },
      h("i"),
      h("b"),
    );
    bar.style.setProperty("--dense", total.denseBytes / largest);
    bar.style.setProperty("--stored", total.bytes / largest);
    grid.append(bar);
  });
  grid.append(h("span", { class: "name all" }, "whole layer"));
  totals.forEach((total, i) =>
    grid.append(
      cell(total.sparsity, "all", { title: `layer ${layers[i]}: ${percent(total.sparsity)} zeros` }),
    ),
  );
  for (const kind of kinds) {
    grid.append(
      h("span", { class: "name", title: printable(kind.label) }, h("bdi", {}, printable(kind.label, 60))),
    );
    for (const layer of layers) {
      const those = kind.layers.get(layer) ?? [];
      const { sparsity } = sum(those);
      const one = those.length === 1 ? those[0] : null;
      const title = `${printable(one ? one.name : kind.label)}: ${sparsity === null ? "not measured" : `${percent(sparsity)} zeros`}`;
      grid.append(
        those.length
          ? cell(sparsity, one ? "single" : "", { title, click: one && (() => select(one)) })
          : h("span", { class: "cell" }),
      );
    }
  }
  grid.append(h("span", { class: "name" }, "layer"));
  layers.forEach((layer, i) =>
    grid.append(h("span", { class: "number" }, i % step === 0 ? String(layer) : "")),
  );

  const legend = h(
    "span",
    { class: "legend" },
    "0 % zeros ",
    ...[0, 0.25, 0.5, 0.75, 1].map((share) => cell(share, "")),
    " 100 %",
  );
  const sizes = h(
    "span",
    { class: "legend" },
    h("span", { class: "key stored" }),
    " in the file ",
    h("span", { class: "key dense" }),
    " dense",
  );
  const known = totals.map(({ sparsity }) => sparsity).filter((s) => s !== null);
  const [least, most] = [Math.min(...known), Math.max(...known)].map(percent);
  const range = least === most ? `${least} zeros in each` : `${least} to ${most} zeros`;
  const summary = `${layers.length === 1 ? "One layer" : `${layers.length} layers`}: ${known.length ? range : "zeros not counted yet"}.`;
  return h(
    "figure",
    { class: "picture" },
    h("figcaption", {}, h("span", {}, summary), legend, sizes),
    h(
      "div",
      {
        class: "scroll",
        tabindex: "0",
        role: "group",
        "aria-label": "Sparsity by layer and kind of tensor; the table below has the numbers",
      },
      grid,
    ),
  );
}
