/** The page: takes files, shows what `model.js` makes of them. Nothing leaves the browser. */

import { bits, bytes, fill, h, integer, percent } from "./dom.js";
import { printable } from "./endor.js";
import { openModel, sum } from "./model.js";
import { picture } from "./picture.js";
import { openSheet } from "./sheet.js";
import { TensorTable } from "./table.js";

/** Where the specification is; rules are anchors in it. */
const SPECIFICATION = "../spec/endor-1/";

const AT_ONCE = 64e6; // bytes that are read unasked, to measure tensors
const SAMPLED = 64 * 4096; // elements of a tensor that are looked at then
const MOST_PROBLEMS = 200;

const at = (id) => document.getElementById(id);
const ruleLink = (rule) => h("a", { class: "tag bad", href: `${SPECIFICATION}#${rule}` }, rule);

let current = null; // what is on the page: { model, table, stop }

/** Files of a drop, and of the folders in it, first level only. */
async function dropped(transfer) {
  const folders = [...transfer.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter((entry) => entry?.isDirectory);
  const files = [...transfer.files].filter((file) => !folders.some((folder) => folder.name === file.name));
  for (const folder of folders) {
    const reader = folder.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) break;
      for (const entry of some)
        if (entry.isFile) files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    }
  }
  return files;
}

/** Opens files and shows them in place of what was there. */
async function show(files) {
  if (files.length === 0) return;
  current?.stop.abort();
  const stop = new AbortController();
  say("Reading the header…");
  at("sheet").close();
  let model = null;
  try {
    model = await openModel([...files].map((file) => ({ name: file.name, blob: file })));
  } catch (error) {
    say(printable(error.message, 300));
    return;
  }
  current = { model, stop };
  document.body.classList.add("opened");
  document.title = `${printable(titleOf(model), 60)} – Endor inspector`;
  render();
  const sampled = model.rows.reduce(
    (total, row) => total + (Math.min(row.tensor.numel, SAMPLED) * (row.tensor.bits ?? 0)) / 8,
    0,
  );
  if (sampled <= AT_ONCE) await measureAll(false);
}

const titleOf = ({ files, checkpoint }) =>
  files.length === 1
    ? files[0].name
    : files.length
      ? `${checkpoint ? "Checkpoint of" : ""} ${files.length} files`.trim()
      : "No weights";

function say(text) {
  at("status").textContent = text;
}

function render() {
  const { model } = current;
  const picked = (row) => openSheet(at("sheet"), row, { changed: update, ruleLink });
  current.table = new TensorTable(model.rows, picked);
  current.facts = h("dl", { class: "facts" });
  current.problems = h("section", { class: "problems", "aria-label": "Problems" });
  current.picture = h("div");
  current.measure = h(
    "button",
    { type: "button", class: "button", click: () => measureAll(false) },
    "Measure all tensors",
  );
  current.check = h(
    "button",
    { type: "button", class: "button primary", click: () => measureAll(true) },
    "Check every byte",
  );
  current.cancel = h(
    "button",
    { type: "button", class: "button", hidden: true, click: () => current.work?.abort() },
    "Stop",
  );
  current.progress = h("progress", { max: "1", value: "0", hidden: true, "aria-label": "Progress" });
  current.select = picked;
  at("report").replaceChildren(
    h(
      "section",
      { class: "summary", "aria-labelledby": "file-title" },
      h("h2", { id: "file-title" }, h("bdi", {}, printable(titleOf(model)))),
      current.facts,
    ),
    current.problems,
    h("div", { class: "bar work" }, current.check, current.measure, current.cancel, current.progress),
    current.picture,
    ...(model.rows.length ? [current.table.element] : []),
    ...fileList(model),
    ...userMetadata(model),
  );
  update();
}

/** Writes anew what depends on what is known of the tensors. */
function update() {
  const { model, facts, problems, table } = current;
  const { rows, files } = model;
  const total = sum(rows);
  const encoded = rows.filter((row) => row.tensor.encoded);
  const versions = [...new Set(files.map(({ file }) => file?.version).filter(Boolean))];
  const read = files.filter(({ file }) => file);
  const list = {
    Format:
      read.length === 0 ? "not readable" : versions.length ? `Endor ${versions.join(", ")}` : "safetensors",
    Size: bytes(model.bytesOnDisk),
    Header: read.length ? bytes(read.reduce((n, { file }) => n + file.headerLength, 0)) : null,
    Tensors: read.length ? integer(rows.length) : null,
    Encoded: versions.length ? integer(encoded.length) : null,
    Elements: total.numel ? integer(total.numel) : null,
    "Dense size": rows.length ? bytes(total.denseBytes) : null,
    "Bits per weight": total.numel ? bits((8 * model.bytesOnDisk) / total.numel) : null,
    Zeros:
      total.sparsity === null
        ? null
        : `${percent(total.sparsity)}${total.known < total.numel ? " of what is counted" : ""}`,
    "Read so far": bytes(model.bytesRead),
  };
  facts.replaceChildren(
    ...Object.entries(list)
      .filter(([, value]) => value !== null)
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

  const all = [...model.problems, ...rows.map((row) => row.problem).filter(Boolean)];
  problems.hidden = all.length === 0;
  fill(
    problems,
    h("h2", {}, all.length === 1 ? "One problem" : `${integer(all.length)} problems`),
    h("ul", {}, ...all.slice(0, MOST_PROBLEMS).map(problemLine)),
    all.length > MOST_PROBLEMS && h("p", { class: "hint" }, `The first ${MOST_PROBLEMS} are listed.`),
  );
  const left = rows.filter((row) => !row.survey && !row.problem && !row.tensor.unsupported);
  current.measure.hidden = left.length === 0 || Boolean(current.work);
  const open = rows.some((row) => !row.checked && !row.problem && !row.tensor.unsupported);
  current.check.hidden = !open || Boolean(current.work);
  current.cancel.hidden = current.progress.hidden = !current.work;
  fill(current.picture, picture(rows, current.select));
  table.update();
}

function problemLine({ kind, rule, tensor, offset, message, fileName }) {
  const place = [
    tensor !== null && h("bdi", { class: "where" }, printable(tensor)),
    offset !== null && `byte ${integer(offset)}`,
    current.model.files.length > 1 && fileName && printable(fileName),
  ];
  const parts = place.filter(Boolean).flatMap((part, i) => (i ? [" · ", part] : [part]));
  const link = rule ? ruleLink(rule) : h("span", { class: "tag bad" }, kind);
  if (kind === "unsupported") link.classList.replace("bad", "note");
  return h(
    "li",
    {},
    link,
    h("span", {}, `${kind === "unsupported" ? "Not supported here: " : ""}${printable(message, 400)}`),
    parts.length > 0 && h("span", { class: "hint" }, ...parts),
  );
}

function fileList({ files }) {
  if (files.length < 2) return [];
  return [
    h(
      "details",
      { class: "more-facts" },
      h("summary", {}, `${files.length} files`),
      h(
        "ul",
        {},
        ...files.map(({ name, size }) => h("li", {}, h("bdi", {}, printable(name)), ` ${bytes(size)}`)),
      ),
    ),
  ];
}

/** Members of `__metadata__` that belong to the user. */
function userMetadata({ files }) {
  const members = files.flatMap(({ file }) => file?.metadata ?? []);
  if (members.length === 0) return [];
  const list = members
    .slice(0, 100)
    .map(({ name, value }) =>
      h(
        "div",
        {},
        h("dt", {}, h("bdi", {}, printable(name))),
        h("dd", {}, h("bdi", {}, printable(value, 500))),
      ),
    );
  return [
    h(
      "details",
      { class: "more-facts" },
      h("summary", {}, `Metadata of the user: ${members.length}`),
      h("dl", {}, ...list),
    ),
  ];
}

/** Measures all tensors, with `whole` down to the last byte and with digests. */
async function measureAll(whole) {
  const mine = current;
  if (mine.work) return;
  mine.work = new AbortController();
  const { signal } = mine.work;
  mine.stop.signal.addEventListener("abort", () => mine.work?.abort(), { once: true });
  const rows = mine.model.rows.filter(
    (row) => !row.tensor.unsupported && !row.problem && !(whole ? row.checked : row.survey),
  );
  const size = (row) =>
    (whole ? row.denseBytes : (Math.min(row.tensor.numel, SAMPLED) * row.tensor.bits) / 8) || 1;
  const all = rows.reduce((n, row) => n + size(row), 0);
  let done = 0;
  let shown = performance.now();
  let outcome = null;
  say(whole ? "Checking every byte…" : "Measuring…");
  update();
  try {
    for (const row of rows) {
      let seen = 0;
      await row.measure({
        whole,
        signal,
        progress: (n) => {
          seen += n;
          mine.progress.value = (done + seen) / all;
        },
      });
      done += size(row);
      if (performance.now() - shown > 250 && mine === current) {
        update();
        shown = performance.now();
      }
    }
  } catch (error) {
    outcome = error.name === "AbortError" ? "Stopped." : printable(error.message, 300);
  }
  mine.work = null;
  if (mine !== current) return;
  say(outcome ?? conclusion(whole));
  update();
}

function conclusion(whole) {
  const { model } = current;
  const bad = [...model.problems, ...model.rows.map((row) => row.problem)].filter(
    (one) => one && one.kind !== "unsupported",
  ).length;
  if (bad) return bad === 1 ? "One problem was found." : `${integer(bad)} problems were found.`;
  if (!whole)
    return "The header keeps every rule; what tensors hold is measured on a sample of their blocks.";
  const digests = model.rows.filter((row) => row.tensor.digest).length;
  return `Every element was decoded and every rule checked; ${digests ? `${integer(digests)} digests match` : "there are no digests"}.`;
}

// -- What people do --------------------------------------------------------------------------------------------------

at("blocked").remove();
at("specification").href = SPECIFICATION;
for (const id of ["files", "folder"])
  at(id).addEventListener("change", ({ target }) => {
    // A folder gives all that is in it, with paths: what is in folders below belongs to something else.
    const files = [...target.files].filter((file) => file.webkitRelativePath.split("/").length <= 2);
    target.value = "";
    show(files);
  });
for (const type of ["dragenter", "dragover"])
  addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  show(await dropped(event.dataTransfer));
});
