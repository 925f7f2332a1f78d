/**
 * What was dropped, as the page shows it: files, rows of tensors, problems.
 *
 *     const model = await openModel([{ name, blob }, ...]);
 */

import { isCheckpoint, openCheckpoint } from "./checkpoint.js";
import { FormatError, UnsupportedError, blobSource, checkDigest, open } from "./endor.js";
import { surveyTensor } from "./survey.js";

const LAYER = /(?:^|\.)([0-9]{1,6})\./;

/** A page that parses more stands still; no tool writes more (W-1). */
const LIMITS = { longestHeader: 25_000_000 };

/** A logical tensor and what has been found out about it. */
export class Row {
  survey = null;
  exact = false; // whether the survey saw all elements
  checked = false; // whether all bytes were, and the digest
  problem = null;

  constructor(tensor, file, fileName) {
    Object.assign(this, { tensor, file, fileName, name: tensor.name });
    const layer = LAYER.exec(tensor.name);
    this.layer = layer && Number(layer[1]);
    this.kind = layer
      ? [tensor.name.slice(0, layer.index), tensor.name.slice(layer.index + layer[0].length)]
      : null;
  }

  /** Number of elements that are not zero; null where it is not known exactly. */
  get nnz() {
    return this.tensor.nnz ?? (this.exact && this.survey.elements ? this.survey.nonzeros : null);
  }

  /** Their share; of a sample until all have been counted, and null before that. */
  get density() {
    if (this.tensor.unsupported || !this.tensor.numel) return null;
    return this.nnz !== null ? this.nnz / this.tensor.numel : (this.survey?.density ?? null);
  }

  get estimated() {
    return this.nnz === null && this.density !== null;
  }

  get encoding() {
    const { encoded, unsupported, positions, values, w } = this.tensor;
    if (unsupported) return "unsupported";
    return encoded ? `${positions}/${values}${w ? ` ${w}` : ""}` : "plain";
  }

  /** Bits in the file for each element. */
  get bitsPerWeight() {
    return this.tensor.unsupported || !this.tensor.numel ? null : (8 * this.tensor.bytes) / this.tensor.numel;
  }

  /** The entropy floor; null before the tensor was measured. */
  get floor() {
    return this.survey?.floor() ?? null;
  }

  get denseBytes() {
    const { unsupported, numel, bits, bytes } = this.tensor;
    return unsupported ? bytes : (numel * bits) / 8;
  }

  /** Looks at some blocks, or with `whole` at all bytes, digest included. Faults of the file become the row's problem. */
  async measure({ whole = false, progress = () => {}, signal } = {}) {
    if (this.tensor.unsupported || this.problem || (whole ? this.checked : this.survey)) return;
    const { file, tensor } = this;
    try {
      const survey = await surveyTensor(file, tensor, { whole, progress, signal });
      if (whole) await checkDigest(file, tensor);
      [this.survey, this.exact, this.checked] = [survey, survey.elements === tensor.numel, whole];
    } catch (error) {
      if (error instanceof FormatError) this.problem = problemOf(error, this.fileName);
      else if (!(error instanceof UnsupportedError)) throw error;
    }
  }
}

/** An error as a line of the list of problems. */
export function problemOf(error, fileName) {
  const kind =
    error instanceof FormatError
      ? "invalid"
      : error instanceof UnsupportedError
        ? "unsupported"
        : "unreadable";
  const { rule = null, tensor = null, offset = null, message } = error;
  return { kind, rule, tensor, offset, message, fileName: error.file ?? fileName };
}

/** A source that counts what is read through it. */
function counted(blob, model) {
  const source = blobSource(blob);
  return {
    size: source.size,
    read(begin, end) {
      model.bytesRead += end - begin;
      return source.read(begin, end);
    },
  };
}

/** Opens what was dropped: a checkpoint by its rules where it is one, and else every file by itself. */
export async function openModel(dropped) {
  const model = { files: [], rows: [], problems: [], bytesRead: 0, bytesOnDisk: 0, checkpoint: false };
  const entries = dropped.map(({ name, blob }) => ({ name, source: counted(blob, model) }));
  const names = entries.map(({ name }) => name);
  model.checkpoint = entries.length > 1 && isCheckpoint(names);
  if (model.checkpoint) {
    try {
      const { files } = await openCheckpoint(entries, LIMITS);
      files.forEach(({ name, file }) => add(model, name, file));
      return model;
    } catch (error) {
      model.problems.push(problemOf(error, null));
    }
  }
  const weights =
    entries.length === 1 ? entries : entries.filter(({ name }) => name.endsWith(".safetensors"));
  for (const { name, source } of weights.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    try {
      add(model, name, await open(source, LIMITS));
    } catch (error) {
      const problem = problemOf(error, name);
      model.bytesOnDisk += source.size;
      model.files.push({ name, size: source.size, file: null });
      if (!model.problems.some((one) => one.fileName === name && one.rule === problem.rule))
        model.problems.push(problem);
    }
  }
  return model;
}

function add(model, name, file) {
  model.files.push({ name, size: file.size, file });
  model.bytesOnDisk += file.size;
  if (file.unsupported)
    model.problems.push({ ...problemOf(new UnsupportedError(file.unsupported), name), rule: "V-1" });
  for (const tensor of file.tensors) {
    model.rows.push(new Row(tensor, file, name));
    if (tensor.unsupported)
      model.problems.push({
        ...problemOf(new UnsupportedError(tensor.unsupported, { tensor: tensor.name }), name),
        rule: tensor.encoded ? "M-7" : "C-14",
      });
  }
}

/** Sums of rows: elements, bytes, and the share of zeros of those of which it is known. */
export function sum(rows) {
  const total = { numel: 0, bytes: 0, denseBytes: 0, known: 0, zeros: 0 };
  for (const row of rows) {
    total.bytes += row.tensor.bytes;
    total.denseBytes += row.denseBytes;
    if (row.tensor.unsupported) continue;
    total.numel += row.tensor.numel;
    const { density } = row;
    if (density === null) continue;
    total.known += row.tensor.numel;
    total.zeros += (1 - density) * row.tensor.numel;
  }
  return { ...total, sparsity: total.known ? total.zeros / total.known : null };
}
