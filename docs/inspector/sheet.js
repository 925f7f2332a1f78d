/** The sheet of one tensor: its facts, its bits per weight against the entropy floor, its bitmap, its parts. */

import { BitmapView } from "./bitmap.js";
import { bits, bytes, fill, h, integer, percent, shape } from "./dom.js";
import { elements, printable } from "./endor.js";
import { patternText, valueText } from "./values.js";

const STEP = 1.5; // of zooming
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Fills the dialog for a row and shows it. `changed(row)` is called when more is known of it. */
export function openSheet(dialog, row, { changed, ruleLink }) {
  const { tensor } = row;
  const facts = h("dl", { class: "facts" });
  const scale = h("div", { class: "scale" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const close = h("button", { type: "button", class: "button close", click: () => dialog.close() }, "Close");
  const whole = h("button", { type: "button", class: "button", click: () => check() }, "Check every byte");
  const stop = new AbortController();

  const update = () => {
    const exactly = row.estimated ? "≈ " : "";
    const list = {
      Shape: shape(tensor.shape),
      Type: printable(tensor.dtype, 40),
      Encoding: row.encoding,
      Elements: tensor.unsupported ? "–" : integer(tensor.numel),
      "Non-zeros": row.nnz === null ? "–" : integer(row.nnz),
      Density: row.density === null ? "–" : `${exactly}${percent(row.density)}`,
      "In the file": bytes(tensor.bytes),
      Digest: tensor.digest ? printable(tensor.digest, 40) : "none",
    };
    facts.replaceChildren(
      ...Object.entries(list).map(([name, value]) =>
        h("div", { class: name === "Digest" ? "long" : null }, h("dt", {}, name), h("dd", {}, value)),
      ),
    );
    scale.replaceChildren(...bars(row));
    if (row.problem) {
      problem.replaceChildren(ruleLink(row.problem.rule), ` ${printable(row.problem.message, 300)}`);
      problem.hidden = false;
    }
    whole.disabled = row.checked || Boolean(row.problem) || Boolean(tensor.unsupported);
    if (row.checked)
      whole.textContent = tensor.digest ? "Checked: every rule and the digest" : "Checked: every element";
    changed(row);
  };
  const check = async () => {
    whole.disabled = true;
    let seen = 0;
    const progress = (n) => {
      seen += n;
      whole.textContent = `Checking: ${percent(row.denseBytes ? seen / row.denseBytes : 1)}`;
    };
    await settle(row.measure({ whole: true, progress, signal: stop.signal }), problem);
    if (!row.checked) whole.textContent = "Check every byte";
    update();
  };

  const drawable = !tensor.unsupported && tensor.numel > 0 && tensor.bits >= 8;
  const plane = drawable ? bitmapPart(row, stop.signal) : null;
  fill(
    dialog,
    h(
      "header",
      { class: "bar head" },
      h("h2", { id: "sheet-title" }, h("bdi", {}, printable(row.name, 300))),
      close,
    ),
    problem,
    tensor.unsupported &&
      h("p", { class: "hint" }, `This tensor cannot be read here: ${tensor.unsupported}.`),
    h("div", { class: "columns" }, facts, scale),
    plane?.element,
    h("div", { class: "bar foot" }, whole),
    parts(row),
  );
  dialog.addEventListener("close", () => (stop.abort(), plane?.close()), { once: true });
  dialog.showModal();
  update();
  plane?.start();
  settle(row.measure({ signal: stop.signal }), problem).then(update);
}

/** Waits for work that the sheet may end; other errors are shown. */
async function settle(work, place) {
  try {
    await work;
  } catch (error) {
    if (error.name === "AbortError") return;
    place.textContent = printable(error.message, 300);
    place.hidden = false;
  }
}

/** Bars of bits per element: dense, in the file, as Endor would have it, and the floor. */
function bars(row) {
  const { tensor, survey } = row;
  if (row.bitsPerWeight === null) return [];
  const best = !tensor.encoded && survey?.smallest(tensor);
  const about = row.exact ? "" : "about ";
  const list = [
    ["dense", tensor.bits, `${tensor.bits}`, "dense"],
    ["in this file", row.bitsPerWeight, bits(row.bitsPerWeight), "stored"],
    best && [
      `${about}as ${best.encoding}`,
      (8 * best.bytes) / tensor.numel,
      bits((8 * best.bytes) / tensor.numel),
      "stored",
    ],
    ["entropy floor", row.floor, row.floor === null ? "…" : bits(row.floor), "floor"],
  ].filter(Boolean);
  const most = Math.max(...list.map(([, value]) => value ?? 0));
  return [
    h("p", { class: "caption" }, "Bits per weight"),
    ...list.map(([name, value, text, kind]) => {
      const bar = h("span", { class: `rule ${kind}` }, h("i"));
      bar.style.setProperty("--share", (value ?? 0) / most);
      return h("p", { class: "measure" }, h("span", {}, name), bar, h("b", {}, text));
    }),
  ];
}

function parts({ tensor }) {
  if (!tensor.encoded || tensor.unsupported) return null;
  const head = h(
    "tr",
    {},
    ...["Part", "Type", "Shape", "Offset", "Bytes"].map((title, i) =>
      h("th", { scope: "col", class: i > 1 ? "number" : null }, title),
    ),
  );
  const lines = Object.entries(tensor.parts).map(([role, part]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, role),
      h("td", {}, part.dtype),
      ...[shape(part.shape), integer(part.begin), integer(part.end - part.begin)].map((text) =>
        h("td", { class: "number" }, text),
      ),
    ),
  );
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parts" },
    h("table", { class: "parts" }, h("thead", {}, head), h("tbody", {}, ...lines)),
  );
}

/** Canvas, buttons and what they say. */
function bitmapPart(row, signal) {
  const { tensor, file } = row;
  const canvas = h("canvas", {
    ...{
      class: "bitmap",
      tabindex: "0",
      role: "application",
      "aria-label": `Bitmap of ${printable(row.name)}`,
    },
    ...{ "aria-roledescription": "zoomable picture", "aria-describedby": "bitmap-where bitmap-keys" },
  });
  const where = h("p", { id: "bitmap-where", class: "hint", "aria-live": "polite" });
  const value = h("p", { class: "hint value" });
  const view = new BitmapView(canvas, {
    onChange({ sampled, error }) {
      const { left, right, top, bottom } = view.sight;
      const per = view.scale < 1 ? `, ${(1 / view.scale).toFixed(1)} elements to a pixel` : "";
      const wrapped = view.grid.wrapped ? ` (wrapped at ${integer(view.grid.columns)})` : "";
      const range = `rows ${integer(top)} to ${integer(bottom - 1)}, columns ${integer(left)} to ${integer(right - 1)}${wrapped}${per}`;
      where.textContent = error
        ? printable(`${error.rule ? `${error.rule}: ` : ""}${error.message}`, 300)
        : range + (sampled ? "; some rows are left out" : "");
    },
  });

  let asked = 0;
  const point = async (px, py) => {
    const turn = (asked += 1);
    const index = view.elementAt(px, py);
    if (index === null) return void (value.textContent = "");
    await new Promise((resolve) => setTimeout(resolve, 60)); // a pointer that moves on does not read
    if (turn !== asked || signal.aborted) return;
    try {
      for await (const bytesOf of elements(file, tensor, index, index + 1)) {
        if (turn === asked)
          value.textContent = `${placeOf(index, tensor.shape)} = ${valueText(bytesOf, tensor.dtype)}  (${patternText(bytesOf)})`;
      }
    } catch (error) {
      value.textContent = printable(error.message, 200);
    }
  };
  const pixel = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * canvas.width) / box.width,
      ((event.clientY - box.top) * canvas.height) / box.height,
    ];
  };
  const middle = () => point(canvas.width / 2, canvas.height / 2);

  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pixel(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = pixel(event);
    const before = pointers.get(event.pointerId);
    if (!before) return void point(...now);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
      view.zoom(
        distance(now) / Math.max(distance(before), 1),
        (now[0] + other[0]) / 2,
        (now[1] + other[1]) / 2,
      );
    } else view.pan(before[0] - now[0], before[1] - now[1]);
    pointers.set(event.pointerId, now);
  });
  for (const type of ["pointerup", "pointercancel"])
    canvas.addEventListener(type, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002)), ...pixel(event));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const direction = KEYS[event.key];
    if (direction) view.pan(...direction.map((d) => (d * canvas.width) / 8));
    else if (event.key === "+" || event.key === "=") view.zoom(STEP);
    else if (event.key === "-") view.zoom(1 / STEP);
    else if (event.key === "0") view.fit();
    else return;
    event.preventDefault();
    middle();
  });

  /** Gives the canvas a pixel for each of the screen; whether it had others. */
  const resize = () => {
    const box = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [box.width, box.height].map((size) => Math.max(1, Math.round(size * ratio)));
    if (canvas.width === width && canvas.height === height) return false;
    [canvas.width, canvas.height] = [width, height];
    return true;
  };
  const watcher = new ResizeObserver(() => resize() && view.zoom(1));
  const colours = matchMedia("(prefers-color-scheme: dark)");
  const redraw = () => view.draw();
  const button = (label, text, work) =>
    h("button", { type: "button", class: "button", "aria-label": label, click: work }, text);
  const buttons = [
    button("Zoom in", "+", () => view.zoom(2)),
    button("Zoom out", "−", () => view.zoom(0.5)),
    button("Show all", "Fit", () => view.fit()),
  ];
  const keys = h(
    "p",
    { id: "bitmap-keys", class: "hint keys" },
    "Coloured: not zero. Drag or arrow keys move, wheel or + and − zoom, 0 shows all.",
  );
  return {
    element: h(
      "div",
      { class: "plane" },
      canvas,
      h("div", { class: "bar" }, h("div", {}, where, value), h("div", { class: "buttons" }, ...buttons)),
      keys,
    ),
    start() {
      resize();
      view.show(file, tensor);
      watcher.observe(canvas);
      colours.addEventListener("change", redraw);
    },
    close() {
      watcher.disconnect();
      colours.removeEventListener("change", redraw);
      view.close();
    },
  };
}

/** An index of the flattened tensor as one of the tensor: `[12, 345]`. */
function placeOf(index, sizes) {
  const place = [];
  let rest = index;
  for (const size of [...sizes].reverse()) {
    place.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return `[${place.join(", ")}]`;
}
