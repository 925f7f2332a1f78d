/**
 * The zoomable bitmap of a tensor on a canvas: dark where an element is not zero. Only blocks that are in sight are read.
 *
 *     const view = new BitmapView(canvas, { onChange });
 *     view.show(file, tensor);
 */

import { BLOCK } from "./endor.js";
import { nonzeros } from "./survey.js";

const CACHED = 1 << 15; // blocks, 16 MiB of bits
const SIGHT = 1 << 12; // blocks that a picture may take, before rows are left out
const RUN = 64; // blocks that are read together
const LARGEST_CELL = 32; // pixels

/**
 * How a tensor is laid out in the plane: its last dimensions run to the right, as many as come nearest to a square; what is
 * still more than 32 times as long as wide is wrapped.
 */
export function gridOf(shape, numel) {
  let best = { columns: numel, rows: 1 };
  for (let k = 1, rows = 1; k <= shape.length; k += 1) {
    rows *= shape[k - 1];
    const columns = numel / rows;
    if (Math.abs(Math.log(columns / rows)) < Math.abs(Math.log(best.columns / best.rows)))
      best = { columns, rows };
  }
  if (Math.max(best.columns / best.rows, best.rows / best.columns) <= 32) return { ...best, wrapped: false };
  const columns = Math.max(1, 2 ** Math.ceil(Math.log2(Math.sqrt(numel))));
  return { columns, rows: Math.ceil(numel / columns), wrapped: true };
}

export class BitmapView {
  #canvas;
  #onChange;
  #file = null;
  #tensor = null;
  #blocks = new Map(); // block -> its bits
  #turn = 0; // grows whenever a drawing is out of date
  scale = 1; // pixels of the canvas for an element
  x = 0; // column and row at the upper left corner
  y = 0;

  /** `onChange({ sampled, error })` after each drawing. */
  constructor(canvas, { onChange }) {
    this.#canvas = canvas;
    this.#onChange = onChange;
  }

  show(file, tensor) {
    [this.#file, this.#tensor] = [file, tensor];
    this.#blocks.clear();
    this.grid = gridOf(tensor.shape, tensor.numel);
    this.fit();
  }

  /** Ends all drawing. */
  close() {
    this.#turn += 1;
    this.#blocks.clear();
  }

  /** The scale at which all of the tensor is in sight. */
  get fitting() {
    const { width, height } = this.#canvas;
    return Math.min(width / this.grid.columns, height / this.grid.rows, LARGEST_CELL);
  }

  fit() {
    this.scale = this.fitting;
    this.#clamp();
    this.draw();
  }

  /** Zooms around a point of the canvas, its middle if none is given. */
  zoom(factor, px = this.#canvas.width / 2, py = this.#canvas.height / 2) {
    const [column, row] = [this.x + px / this.scale, this.y + py / this.scale];
    this.scale = Math.min(Math.max(this.scale * factor, this.fitting), LARGEST_CELL);
    this.x = column - px / this.scale;
    this.y = row - py / this.scale;
    this.#clamp();
    this.draw();
  }

  /** Moves the view by pixels of the canvas. */
  pan(dx, dy) {
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.#clamp();
    this.draw();
  }

  /** Index of the element at a point of the canvas, or null. */
  elementAt(px, py) {
    const column = Math.floor(this.x + px / this.scale);
    const row = Math.floor(this.y + py / this.scale);
    const { columns, rows } = this.grid;
    if (column < 0 || row < 0 || column >= columns || row >= rows) return null;
    const index = row * columns + column;
    return index < this.#tensor.numel ? index : null;
  }

  /** First and end of the columns and rows in sight. */
  get sight() {
    const { width, height } = this.#canvas;
    const { columns, rows } = this.grid;
    return {
      left: Math.max(0, Math.floor(this.x)),
      right: Math.min(columns, Math.ceil(this.x + width / this.scale)),
      top: Math.max(0, Math.floor(this.y)),
      bottom: Math.min(rows, Math.ceil(this.y + height / this.scale)),
    };
  }

  /** What is smaller than the canvas is in its middle; what is larger has no gap at a side. */
  #clamp() {
    const { width, height } = this.#canvas;
    const place = (at, pixels, size) => {
      const seen = pixels / this.scale;
      return seen >= size ? (size - seen) / 2 : Math.min(Math.max(at, 0), size - seen);
    };
    this.x = place(this.x, width, this.grid.columns);
    this.y = place(this.y, height, this.grid.rows);
  }

  async draw() {
    const turn = (this.#turn += 1);
    try {
      const sampled = await this.#paint(turn);
      if (turn === this.#turn) this.#onChange({ sampled, error: null });
    } catch (error) {
      if (turn === this.#turn) this.#onChange({ sampled: false, error });
    }
  }

  /** Paints from above to below, as blocks come in; whether rows were left out. */
  async #paint(turn) {
    const canvas = this.#canvas;
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const colours = this.#colours();
    const { left, right, top, bottom } = this.sight;
    const { columns } = this.grid;

    // Rows of elements for each row of pixels; of many only some are looked at.
    const span = Math.max(1, Math.ceil((right - left) / BLOCK)) + 1;
    const most = Math.max(1, Math.floor(SIGHT / span / Math.max(1, Math.min(height, bottom - top))));
    const lines = [];
    let sampled = false;
    for (let py = 0; py < height; py += 1) {
      const from = Math.max(top, Math.floor(this.y + py / this.scale));
      const to = Math.min(bottom, Math.max(from + 1, Math.floor(this.y + (py + 1) / this.scale)));
      if (this.y + (py + 0.5) / this.scale < 0 || from >= to || from >= bottom) continue;
      const taken = Math.min(to - from, most);
      sampled ||= taken < to - from;
      lines.push({
        py,
        rows: Array.from({ length: taken }, (_, k) => from + Math.floor(((to - from) * k) / taken)),
      });
    }
    const edges = Float64Array.from({ length: width + 1 }, (_, px) => Math.floor(this.x + px / this.scale));

    let shown = performance.now();
    for (let i = 0; i < lines.length;) {
      const wanted = new Set();
      const start = i;
      for (; i < lines.length && (wanted.size < 4 * RUN || i === start); i += 1)
        for (const row of lines[i].rows)
          for (
            let b = Math.floor((row * columns + left) / BLOCK);
            b * BLOCK < Math.min(row * columns + right, this.#tensor.numel);
            b += 1
          )
            wanted.add(b);
      await this.#fetch(wanted);
      if (turn !== this.#turn) return false;
      for (const line of lines.slice(start, i)) this.#line(image, line, edges, left, right, colours);
      if (performance.now() - shown > 50) {
        context.putImageData(image, 0, 0);
        await new Promise((resolve) => setTimeout(resolve));
        if (turn !== this.#turn) return false;
        shown = performance.now();
      }
    }
    context.putImageData(image, 0, 0);
    return sampled;
  }

  /** Reads what is missing of these blocks, neighbours together. */
  async #fetch(wanted) {
    const missing = [...wanted].filter((b) => !this.#blocks.has(b)).sort((a, b) => a - b);
    const runs = [];
    for (const b of missing) {
      const last = runs.at(-1);
      if (last && last[1] === b && b - last[0] < RUN) last[1] = b + 1;
      else runs.push([b, b + 1]);
    }
    const [file, tensor] = [this.#file, this.#tensor];
    for (let i = 0; i < runs.length; i += 16)
      await Promise.all(
        runs.slice(i, i + 16).map(async ([first, end]) => {
          const bits = await nonzeros(file, tensor, first, end);
          for (let b = first; b < end; b += 1)
            this.#blocks.set(b, bits.subarray(((b - first) * BLOCK) / 8, ((b - first + 1) * BLOCK) / 8));
        }),
      );
    for (const b of this.#blocks.keys()) {
      if (this.#blocks.size <= CACHED) break;
      if (!wanted.has(b)) this.#blocks.delete(b);
    }
  }

  /** A row of pixels: each as dark as the share of its elements that are not zero. */
  #line(image, { py, rows }, edges, left, right, { zero, one }) {
    const { width, data } = image;
    const ones = new Uint32Array(width);
    const seen = new Uint32Array(width);
    for (const row of rows) this.#count(row, edges, left, right, ones, seen);
    const cells = this.scale >= 8; // elements apart from each other
    if (cells && Math.floor(this.y + py / this.scale) !== Math.floor(this.y + (py - 1) / this.scale)) return;
    for (let px = 0; px < width; px += 1) {
      if (seen[px] === 0 || (cells && px > 0 && edges[px - 1] !== edges[px])) continue;
      const share = ones[px] / seen[px];
      const at = 4 * (py * width + px);
      for (let c = 0; c < 3; c += 1) data[at + c] = zero[c] + (one[c] - zero[c]) * share;
      data[at + 3] = 255;
    }
  }

  /** Adds a row of elements to what each pixel has seen. */
  #count(row, edges, left, right, ones, seen) {
    const first = row * this.grid.columns;
    let bits = null;
    let block = -1;
    for (let px = 0; px < ones.length; px += 1) {
      const from = edges[px];
      if (from < left || from >= right) continue;
      const end = Math.min(first + Math.min(Math.max(edges[px + 1], from + 1), right), this.#tensor.numel);
      for (let i = first + from; i < end; i += 1) {
        const place = i % BLOCK;
        if (block < 0 || place === 0 || i - place !== block * BLOCK) {
          block = Math.floor(i / BLOCK);
          bits = this.#blocks.get(block);
        }
        ones[px] += (bits[place >> 3] >> (place & 7)) & 1;
        seen[px] += 1;
      }
    }
  }

  /** The colours of the style sheet, `--zero` and `--one`, as numbers. */
  #colours() {
    const style = getComputedStyle(this.#canvas);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    };
    return { zero: rgb("--zero"), one: rgb("--one") };
  }
}
