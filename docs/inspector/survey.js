/**
 * What can be told of a tensor from its elements: zeros, the entropy floor, the size that Endor would make of it.
 *
 *     const survey = await surveyTensor(file, tensor, { whole: false });   // 64 blocks all over it, or all of them
 *     survey.nonzeros / survey.elements; survey.floor(); survey.smallest(tensor)
 */

import { BLOCK, DTYPES, bitmapOf, blocks, elements, expectedParts } from "./endor.js";

const SAMPLE = 64; // blocks that stand for all
const SMALL = 2e6; // bytes of a tensor that are sooner read as a whole than in many places
const WIDEST = 4;
const HEADER_SHARE = { raw: 512, split: 768 }; // bytes that W-7 counts for the entry of a tensor

/** First and end of the runs of blocks to look at: all of a small tensor, else some all over it. `endor inspect` takes the same. */
export function sampleOf(numel) {
  const blocks = Math.ceil(numel / BLOCK);
  if (blocks <= SAMPLE) return [[0, blocks]];
  return Array.from({ length: SAMPLE }, (_, k) => Math.floor((blocks * k) / SAMPLE)).map((b) => [b, b + 1]);
}

/** Counts of elements, fed in whole blocks. */
export class Survey {
  elements = 0;
  nonzeros = 0;
  #type;
  #mantissas = 0; // all of them, or-ed
  #exponents;
  #patches = { bitmap: [], all: [] }; // by w

  constructor(dtype) {
    this.#type = DTYPES.get(dtype);
    if (this.#type.exponent === null) return;
    this.#exponents = new Float64Array(1 << this.#type.exponent);
    for (let w = 1; w <= Math.min(WIDEST, this.#type.exponent - 1); w += 1)
      this.#patches.bitmap[w] = this.#patches.all[w] = 0;
  }

  /** `bytes` of elements, from the beginning of a block on. */
  add(bytes) {
    const { bits } = this.#type;
    if (bits < 8) return;
    const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
    const width = Math.min(bits, 32) / 8;
    const words = new (width === 1 ? Uint8Array : width === 2 ? Uint16Array : Uint32Array)(
      aligned.buffer,
      aligned.byteOffset,
      aligned.length / width,
    );
    const step = BLOCK * (bits === 64 ? 2 : 1);
    for (let at = 0; at < words.length; at += step) this.#block(words.subarray(at, at + step));
  }

  #block(words) {
    const { bits, exponent, mantissa } = this.#type;
    let nonzeros = 0;
    if (bits === 64)
      for (let i = 0; i < words.length; i += 2) nonzeros += (words[i] | words[i + 1]) === 0 ? 0 : 1;
    else if (exponent === null) for (let i = 0; i < words.length; i += 1) nonzeros += words[i] === 0 ? 0 : 1;
    else {
      const histogram = new Uint32Array(1 << exponent);
      const mask = (1 << exponent) - 1;
      let all = 0;
      for (let i = 0; i < words.length; i += 1) {
        const word = words[i];
        if (word === 0) continue;
        nonzeros += 1;
        all |= word;
        histogram[(word >>> mantissa) & mask] += 1;
      }
      this.#mantissas |= all & ((1 << mantissa) - 1);
      for (let e = 0; e <= mask; e += 1) this.#exponents[e] += histogram[e];
      this.#count("bitmap", histogram, nonzeros);
      histogram[0] += words.length - nonzeros;
      this.#count("all", histogram, words.length);
    }
    this.elements += bits === 64 ? words.length / 2 : words.length;
    this.nonzeros += nonzeros;
  }

  /** Adds the patches that a block of these exponents needs, by w: what the best window leaves. */
  #count(positions, histogram, stored) {
    for (let w = 1; w < this.#patches[positions].length; w += 1) {
      const window = 1 << w;
      let inside = 0;
      for (let e = 0; e < window; e += 1) inside += histogram[e];
      let most = inside;
      for (let e = window; e < histogram.length; e += 1) {
        inside += histogram[e] - histogram[e - window];
        if (inside > most) most = inside;
      }
      this.#patches[positions][w] += stored - most;
    }
  }

  get density() {
    return this.elements ? this.nonzeros / this.elements : null;
  }

  /** Mantissa bits that have to be kept (W-9). */
  get mantissa() {
    const used = this.#mantissas;
    return used === 0 ? 0 : this.#type.mantissa - (31 - Math.clz32(used & -used));
  }

  /**
   * The entropy floor in bits per element: H(density) + density x (H(exponents) + sign and kept mantissa bits), as
   * `endor inspect` has it; null if no element was seen, or of less than a byte.
   */
  floor() {
    const { density } = this;
    if (density === null) return null;
    let bits = this.#type.bits;
    if (this.#exponents && this.nonzeros)
      bits = entropy(Array.from(this.#exponents, (n) => n / this.nonzeros)) + 1 + this.mantissa;
    return entropy([density, 1 - density]) + density * bits;
  }

  /**
   * What Endor makes of such a tensor (W-7, W-10): `{encoding, bytes}`, header aside; null if it stays plain. Of a
   * sample that is an estimate.
   */
  smallest({ dtype, shape, numel }) {
    const { bits, encodable } = this.#type;
    if (!encodable || !this.elements) return null;
    const scale = numel / this.elements;
    const nnz = Math.round(this.nonzeros * scale);
    const tried = [["bitmap", "raw", 0]];
    for (const positions of ["bitmap", "all"])
      for (let w = 1; w < this.#patches[positions].length; w += 1) tried.push([positions, "split", w]);
    let best = null;
    for (const [positions, values, w] of tried) {
      const stored = positions === "bitmap" ? nnz : numel;
      const patches = w ? Math.round(this.#patches[positions][w] * scale) : 0;
      const blocks = Math.ceil(numel / BLOCK);
      const parts = expectedParts({
        ...{ name: "", dtype, positions, values, numel, blocks, stored, bits },
        ...{ mantissa: this.mantissa, w, patches },
      });
      const physical = parts[0][3];
      if (physical.length === shape.length && physical.every((size, i) => size === shape[i])) continue; // T-5
      const bytes = parts.reduce(
        (sum, [, , type, sizes]) => sum + (sizes.reduce((a, b) => a * b, 1) * DTYPES.get(type).bits) / 8,
        0,
      );
      const cost = bytes + HEADER_SHARE[values];
      if (!best || cost < best.cost)
        best = { cost, bytes, encoding: w ? `${positions}/${values} ${w}` : `${positions}/${values}` };
    }
    return best && 100 * best.cost <= (95 * numel * bits) / 8
      ? { encoding: best.encoding, bytes: best.bytes }
      : null;
  }
}

const entropy = (shares) => shares.reduce((sum, p) => (p > 0 ? sum - p * Math.log2(p) : sum), 0);

/**
 * Surveys a tensor: a sample of its blocks, or with `whole` all elements, which also checks rules B and E of an encoded
 * one. `progress(bytes)` is told of the dense bytes that have been seen; `signal` ends it early.
 */
export async function surveyTensor(file, tensor, { whole = false, progress = () => {}, signal } = {}) {
  const survey = new Survey(tensor.dtype);
  const pieces = whole
    ? elements(file, tensor)
    : blocks(tensor.bytes <= SMALL ? await inMemory(file, tensor) : file, tensor, sampleOf(tensor.numel));
  for await (const bytes of pieces) {
    signal?.throwIfAborted();
    survey.add(bytes);
    progress(bytes.length);
  }
  return survey;
}

/** The file with the parts of one tensor in memory: every read of a file takes its time in browsers. */
async function inMemory(file, tensor) {
  const read = async ({ begin, end }) => ({ begin, end, bytes: await file.source.read(begin, end) });
  const parts = await Promise.all(Object.values(tensor.parts).map(read));
  return {
    source: {
      async read(begin, end) {
        const part = parts.find((one) => one.begin <= begin && end <= one.end);
        return part.bytes.slice(begin - part.begin, end - part.begin);
      },
    },
  };
}

/** Which elements of the blocks `first` to `end` - 1 are not zero, a bit for each; of a bitmap the bitmap alone is read. */
export async function nonzeros(file, tensor, first, end) {
  if (tensor.positions === "bitmap") return bitmapOf(file, tensor, first, end);
  const bits = new Uint8Array(((end - first) * BLOCK) / 8);
  const size = tensor.bits / 8;
  let at = 0;
  for await (const bytes of elements(file, tensor, first * BLOCK, Math.min(end * BLOCK, tensor.numel)))
    for (let i = 0; i < bytes.length; i += size, at += 1) {
      let any = 0;
      for (let k = 0; k < size; k += 1) any |= bytes[i + k];
      if (any !== 0) bits[at >> 3] |= 1 << (at & 7);
    }
  return bits;
}
