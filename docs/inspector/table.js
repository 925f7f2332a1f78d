/** The table of tensors: sorted by a column, filtered by name, a page at a time. */

import { bits, bytes, h, integer, percent, shape } from "./dom.js";
import { printable } from "./endor.js";

const PAGE = 200;

const COLUMNS = [
  { title: "Tensor", key: (row) => row.name, text: true },
  { title: "Shape", key: (row) => row.tensor.numel },
  { title: "Type", key: (row) => row.tensor.dtype, text: true },
  { title: "Encoding", key: (row) => row.encoding, text: true },
  { title: "Non-zeros", key: (row) => row.nnz ?? -1 },
  { title: "Density", key: (row) => row.density ?? -1 },
  { title: "Bits per weight", key: (row) => row.bitsPerWeight ?? -1 },
  { title: "Entropy floor", key: (row) => row.floor ?? -1 },
  { title: "In the file", key: (row) => row.tensor.bytes },
];

export class TensorTable {
  #rows;
  #select;
  #shown = PAGE;
  #column = null; // as in the file
  #rising = true;
  #needle = "";
  #body = h("tbody");
  #lines = new Map(); // row -> its element, which stays: it may have the focus
  #more = h("button", { type: "button", class: "button more", click: () => this.#grow() });
  #found = h("p", { class: "hint", role: "status" });
  #heads;

  /** `select(row)` opens a tensor. */
  constructor(rows, select) {
    [this.#rows, this.#select] = [rows, select];
    this.#heads = COLUMNS.map((column, i) =>
      h(
        "th",
        { scope: "col", class: column.text ? null : "number" },
        h("button", { type: "button", click: () => this.#sort(i) }, column.title),
      ),
    );
    const search = h("input", {
      type: "search",
      placeholder: "Filter by name",
      "aria-label": "Filter tensors by name",
      autocomplete: "off",
      spellcheck: "false",
    });
    search.addEventListener("input", () => {
      [this.#needle, this.#shown] = [search.value.toLowerCase(), PAGE];
      this.update();
    });
    this.element = h(
      "section",
      { class: "tensors", "aria-labelledby": "tensors-title" },
      h("div", { class: "bar" }, h("h2", { id: "tensors-title" }, "Tensors"), search),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of tensors" },
        h("table", {}, h("thead", {}, h("tr", {}, ...this.#heads)), this.#body),
      ),
      this.#found,
      this.#more,
    );
    this.update();
  }

  #sort(i) {
    this.#rising = this.#column === i ? !this.#rising : Boolean(COLUMNS[i].text);
    this.#column = i;
    this.update();
  }

  #grow() {
    this.#shown += PAGE;
    this.update();
  }

  update() {
    let rows = this.#needle
      ? this.#rows.filter((row) => row.name.toLowerCase().includes(this.#needle))
      : this.#rows;
    if (this.#column !== null) {
      const { key } = COLUMNS[this.#column];
      const sign = this.#rising ? 1 : -1;
      rows = [...rows].sort((a, b) => (key(a) < key(b) ? -sign : key(a) > key(b) ? sign : 0));
    }
    this.#heads.forEach((head, i) => {
      if (i === this.#column) head.setAttribute("aria-sort", this.#rising ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const lines = rows.slice(0, this.#shown).map((row) => this.#line(row));
    if (
      lines.length !== this.#body.children.length ||
      lines.some((line, i) => line !== this.#body.children[i])
    ) {
      const focused = document.activeElement;
      this.#body.replaceChildren(...lines);
      if (this.#body.contains(focused)) focused.focus({ preventScroll: true });
    }
    const left = rows.length - this.#shown;
    this.#more.hidden = left <= 0;
    this.#more.textContent = `Show ${integer(Math.min(PAGE, left))} more of ${integer(left)}`;
    this.#found.textContent = this.#needle
      ? `${integer(rows.length)} of ${integer(this.#rows.length)} tensors`
      : "";
  }

  #line(row) {
    if (!this.#lines.has(row)) {
      const button = h(
        "button",
        { type: "button", class: "tensor", click: () => this.#select(row) },
        h("bdi", {}, printable(row.name)),
      );
      this.#lines.set(
        row,
        h("tr", {}, h("th", { scope: "row" }, button, h("span", { class: "tag bad", hidden: true }))),
      );
    }
    const line = this.#lines.get(row);
    const tag = line.querySelector(".tag");
    [tag.hidden, tag.textContent] = [!row.problem, row.problem?.rule ?? ""];
    while (line.children.length > 1) line.lastChild.remove();
    line.append(...this.#cells(row));
    return line;
  }

  #cells(row) {
    const { tensor, density } = row;
    const cell = (text, kind = "number") => h("td", { class: kind }, text);
    const track = h("span", { class: "track" }, h("i"));
    track.style.setProperty("--share", density ?? 0);
    return [
      cell(shape(tensor.shape)),
      cell(printable(tensor.dtype, 20), null),
      cell(row.encoding, null),
      cell(row.nnz === null ? "–" : integer(row.nnz)),
      h(
        "td",
        { class: "number density" },
        density === null ? "–" : `${row.estimated ? "≈ " : ""}${percent(density)}`,
        density !== null && track,
      ),
      cell(bits(row.bitsPerWeight)),
      cell(bits(row.floor)),
      cell(bytes(tensor.bytes)),
    ];
  }
}
