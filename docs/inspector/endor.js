/**
 * Reads Endor and safetensors files: a strict decoder of format 1.1 in plain JavaScript.
 *
 *     const file = await open(blobSource(blob));         // rules J, C, M and T, from the header alone
 *     for (const tensor of file.tensors) ...             // name, dtype, shape, encoding, parts
 *     for await (const bytes of elements(file, tensor))  // its dense bytes, each run of blocks checked first
 *     await digestOf(file, tensor)                       // what its digest should be
 *
 * Written from spec/endor-1.md alone, for browsers and Node, without dependencies. Only the ranges that are
 * needed are read, and at most some MiB at a time. Whatever the bytes are, the end is a right answer or one of
 * two errors: `FormatError` names the rule that the file breaks, `UnsupportedError` says what is missing here.
 */

/** The file is invalid. `rule` is the rule of the specification; `tensor` and `offset`, in the file, may be null. */
export class FormatError extends Error {
  constructor(rule, message, { tensor = null, offset = null } = {}) {
    super(message);
    this.name = "FormatError";
    this.rule = rule;
    this.tensor = tensor;
    this.offset = offset;
  }
}

/** The file may be valid, and needs what this reader does not have. */
export class UnsupportedError extends Error {
  constructor(message, { tensor = null } = {}) {
    super(message);
    this.name = "UnsupportedError";
    this.tensor = tensor;
  }
}

// -- Sources ---------------------------------------------------------------------------------------------------------

/** A source is `{size, read(begin, end)}`; `read` promises a Uint8Array of its own with exactly these bytes. */
export function blobSource(blob) {
  return {
    size: blob.size,
    async read(begin, end) {
      if (begin === end) return new Uint8Array(0);
      const bytes = new Uint8Array(await blob.slice(begin, end).arrayBuffer());
      if (bytes.length !== end - begin) throw new Error("the file has changed while it was read");
      return bytes;
    },
  };
}

// -- Element types (section 5.3) -------------------------------------------------------------------------------------

const FLOATS = {
  BF16: [8, 7],
  F16: [5, 10],
  F32: [8, 23],
  F8_E4M3: [4, 3],
  F8_E4M3FNUZ: [4, 3],
  F8_E5M2: [5, 2],
  F8_E5M2FNUZ: [5, 2],
};
const BITS = {
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6 },
  ...{ BOOL: 8, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8 },
  ...{ I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32, C64: 64, F64: 64, I64: 64, U64: 64 },
};

/** By name: `bits`, whether it is `encodable`, and for what can be split the bits of `exponent` and `mantissa`. */
export const DTYPES = new Map(
  Object.entries(BITS).map(([name, bits]) => {
    const [exponent = null, mantissa = null] = FLOATS[name] ?? [];
    return [name, { bits, encodable: bits >= 8, exponent, mantissa }];
  }),
);

/** What a stored element's place and what its bits are kept as. */
const ENCODINGS = new Set(["bitmap raw", "bitmap split", "all split"]);

/** Elements of a block. */
export const BLOCK = 4096;
const GROUP = 64;
const LARGEST = Number.MAX_SAFE_INTEGER; // 2^53 - 1, as J-5 has it
const LONGEST_HEADER = 100_000_000;

const roundup = (x, y) => Math.ceil(x / y) * y;

/** The exact product of a shape; Infinity past 2^53, of which no file has as many (section 14, Sizes are exact). */
function product(shape) {
  if (shape.includes(0)) return 0;
  let numel = 1;
  for (const size of shape) {
    numel *= size;
    if (numel > LARGEST) return Infinity;
  }
  return numel;
}

// -- JSON (rules J) --------------------------------------------------------------------------------------------------

const MAX_DEPTH = 16;
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** Offset of the first byte that is not well-formed UTF-8 (RFC 3629), or -1. */
export function malformedUtf8(bytes) {
  const { length } = bytes;
  let i = 0;
  while (i < length) {
    const lead = bytes[i];
    if (lead < 0x80) {
      i += 1;
      continue;
    }
    const more =
      lead >= 0xc2 && lead < 0xe0 ? 1 : (lead & 0xf0) === 0xe0 ? 2 : lead >= 0xf0 && lead < 0xf5 ? 3 : 0;
    if (more === 0 || i + more >= length) return i;
    const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80; // overlong forms are below
    const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf; // surrogates, and what is past U+10FFFF, above
    if (bytes[i + 1] < low || bytes[i + 1] > high) return i;
    for (let k = 2; k <= more; k += 1) if ((bytes[i + k] & 0xc0) !== 0x80) return i;
    i += more + 1;
  }
  return -1;
}

/** Index of the first of the sorted names that is not less than `name`. */
export function lowerBound(sorted, name) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle].name < name) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The members of a JSON object, `{name, value, at}`, sorted by name; no hash table that hostile names could flood, and
 * no name, such as `__proto__`, with a meaning of its own. `at` is the offset of the name.
 */
export class Members {
  constructor(list) {
    this.list = list;
  }

  get(name) {
    const found = this.list[lowerBound(this.list, name)];
    return found?.name === name ? found.value : undefined;
  }

  find(name) {
    const found = this.list[lowerBound(this.list, name)];
    return found?.name === name ? found : undefined;
  }
}

/** Members of an object of which only some are known: a header may have millions of such objects. */
class Fields {
  constructor(keys) {
    this.keys = keys;
    this.values = new Array(keys.length);
  }

  get(name) {
    return this.values[this.keys.indexOf(name)];
  }
}

const isObject = (value) => value instanceof Members || value instanceof Fields;

/**
 * Parses a JSON text whose value is an object, strictly: rules J-1 to J-4, and C-5 in place of J-1 for what follows
 * the object if `header` is set.
 *
 * Of the tree only that is built which `keep` names, an object of members, and `true` for a value that has no members
 * of interest. Where `*` stands for all names that are not there, Members come out, elsewhere Fields; both have `get`. Of arrays the first 65 values are kept, in which nested ones are
 * null. A number is kept as such if it is an integer as J-5 has it, else as NaN.
 *
 * `bytes` are well-formed UTF-8; `fail(rule, message, position)` gives the error to throw.
 */
export function parseJson(bytes, keep, fail, header = false) {
  const { length } = bytes;
  let at = 0;

  const stop = (rule, message, position = at) => {
    throw fail(rule, message, position);
  };
  const unexpected = () =>
    stop(
      "J-1",
      at < length
        ? `byte 0x${bytes[at].toString(16).padStart(2, "0")} does not belong there`
        : "the JSON text is cut short",
    );
  const space = () => {
    while (
      at < length &&
      (bytes[at] === 0x20 || bytes[at] === 0x0a || bytes[at] === 0x0d || bytes[at] === 0x09)
    )
      at += 1;
  };
  const digits = () => {
    const from = at;
    while (at < length && bytes[at] >= 0x30 && bytes[at] <= 0x39) at += 1;
    if (at === from) unexpected();
  };
  const literal = (text, value) => {
    for (let i = 0; i < text.length; i += 1, at += 1) if (bytes[at] !== text.charCodeAt(i)) unexpected();
    return value;
  };

  const number = () => {
    const from = at;
    if (bytes[at] === 0x2d) at += 1;
    if (bytes[at] === 0x30) at += 1;
    else digits();
    const whole = at;
    if (bytes[at] === 0x2e) {
      at += 1;
      digits();
    }
    if (bytes[at] === 0x65 || bytes[at] === 0x45) {
      at += 1;
      if (bytes[at] === 0x2b || bytes[at] === 0x2d) at += 1;
      digits();
    }
    if (whole !== at || bytes[from] === 0x2d || at - from > 16) return NaN;
    let value = 0;
    for (let i = from; i < at; i += 1) value = value * 10 + (bytes[i] - 0x30);
    return value <= LARGEST ? value : NaN;
  };

  const hex4 = () => {
    let value = 0;
    for (let i = 0; i < 4; i += 1, at += 1) {
      const c = bytes[at];
      const digit =
        c >= 0x30 && c <= 0x39
          ? c - 0x30
          : c >= 0x41 && c <= 0x46
            ? c - 0x37
            : c >= 0x61 && c <= 0x66
              ? c - 0x57
              : -1;
      if (digit < 0) unexpected();
      value = value * 16 + digit;
    }
    return value;
  };

  const escaped = () => {
    const from = at;
    at += 1;
    switch (bytes[at++]) {
      case 0x22:
        return 0x22;
      case 0x5c:
        return 0x5c;
      case 0x2f:
        return 0x2f;
      case 0x62:
        return 0x08;
      case 0x66:
        return 0x0c;
      case 0x6e:
        return 0x0a;
      case 0x72:
        return 0x0d;
      case 0x74:
        return 0x09;
      case 0x75: {
        const unit = hex4();
        if (unit < 0xd800 || unit > 0xdfff) return unit;
        if (unit < 0xdc00 && bytes[at] === 0x5c && bytes[at + 1] === 0x75) {
          at += 2;
          const low = hex4();
          if (low >= 0xdc00 && low <= 0xdfff) return 0x10000 + (unit - 0xd800) * 0x400 + (low - 0xdc00);
        }
        return stop("J-3", "a lone surrogate", from);
      }
      default:
        at -= 1;
        return unexpected();
    }
  };

  /** Goes past a string; gives it if it is wanted. */
  const string = (wanted) => {
    at += 1;
    const from = at;
    let plain = true;
    while (at < length && bytes[at] !== 0x22) {
      if (bytes[at] < 0x20) unexpected();
      if (bytes[at] === 0x5c) {
        plain = false;
        escaped();
      } else at += 1;
    }
    if (at >= length) unexpected();
    const end = at;
    at += 1;
    if (!wanted) return undefined;
    return plain ? text(bytes, from, end) : unescaped(from, end);
  };

  /** Second reading of a string with escapes, which the first has checked. What they stand for is never longer. */
  const unescaped = (from, end) => {
    const out = new Uint8Array(end - from);
    const after = at;
    let size = 0;
    at = from;
    while (at < end) {
      if (bytes[at] !== 0x5c) {
        out[size++] = bytes[at++];
        continue;
      }
      const point = escaped();
      if (point < 0x80) out[size++] = point;
      else {
        const more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
        out[size++] = [0, 0xc0, 0xe0, 0xf0][more] | (point >> (6 * more));
        for (let k = more - 1; k >= 0; k -= 1) out[size++] = 0x80 | ((point >> (6 * k)) & 0x3f);
      }
    }
    at = after;
    return text(out, 0, size);
  };

  const nested = (depth) => {
    if (depth > MAX_DEPTH) stop("J-4", `nested deeper than ${MAX_DEPTH}`);
    at += 1;
    space();
  };

  const object = (wanted, depth) => {
    nested(depth);
    const members = []; // all of them, for J-2
    const all = wanted?.["*"];
    const fields = typeof wanted === "object" && !all ? new Fields(keysOf(wanted)) : null;
    if (bytes[at] === 0x7d) at += 1;
    else {
      for (;;) {
        if (bytes[at] !== 0x22) unexpected();
        const member = { name: "", value: undefined, at };
        member.name = string(true);
        members.push(member);
        space();
        if (bytes[at] !== 0x3a) unexpected();
        at += 1;
        space();
        const inside =
          fields || all ? (Object.hasOwn(wanted, member.name) ? wanted[member.name] : all) : undefined;
        const found = value(inside, depth + 1);
        if (all) member.value = found;
        else if (inside !== undefined) fields.values[fields.keys.indexOf(member.name)] = found;
        space();
        if (bytes[at] === 0x7d) break;
        if (bytes[at] !== 0x2c) unexpected();
        at += 1;
        space();
      }
      at += 1;
    }
    unique(members);
    return all ? new Members(members) : (fields ?? EMPTY);
  };

  const unique = (members) => {
    members.sort(byName);
    for (let i = 1; i < members.length; i += 1)
      if (members[i].name === members[i - 1].name)
        stop(
          "J-2",
          `two members are named ${quoted(members[i].name)}`,
          Math.max(members[i].at, members[i - 1].at),
        );
  };

  const array = (wanted, depth) => {
    nested(depth);
    const kept = [];
    if (bytes[at] === 0x5d) {
      at += 1;
      return kept;
    }
    for (;;) {
      const one = value(wanted && kept.length < 65 ? true : undefined, depth + 1);
      if (wanted && kept.length < 65) kept.push(typeof one === "object" ? null : one);
      space();
      if (bytes[at] === 0x5d) break;
      if (bytes[at] !== 0x2c) unexpected();
      at += 1;
      space();
    }
    at += 1;
    return kept;
  };

  const value = (wanted, depth) => {
    switch (bytes[at]) {
      case 0x7b:
        return object(wanted, depth);
      case 0x5b:
        return array(wanted, depth);
      case 0x22:
        return string(wanted);
      case 0x74:
        return literal("true", true);
      case 0x66:
        return literal("false", false);
      case 0x6e:
        return literal("null", null);
      default:
        return number();
    }
  };

  if (!header) space();
  if (bytes[at] !== 0x7b) stop(header ? "C-5" : "J-1", "the JSON text is not an object");
  const members = object(keep, 1);
  if (header) while (at < length && bytes[at] === 0x20) at += 1;
  else space();
  if (at < length)
    stop(
      header ? "C-5" : "J-1",
      header ? "something other than spaces after the header" : "something after the JSON text",
    );
  return members;
}

const EMPTY = new Members([]);
const KEYS_OF = new WeakMap();

/** The names in a `keep`, the same array each time. */
function keysOf(keep) {
  if (!KEYS_OF.has(keep)) KEYS_OF.set(keep, Object.keys(keep));
  return KEYS_OF.get(keep);
}

const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/** The string that some UTF-8 stands for; most are short ASCII, for which a decoder's start takes longer than the work. */
function text(bytes, from, end) {
  const range = bytes.subarray(from, end);
  return range.length <= 64 && range.every((byte) => byte < 0x80)
    ? String.fromCharCode.apply(null, range)
    : utf8.decode(range);
}

/** Text of a file as people are shown it (S-4): what would control a terminal or turn the line is escaped; not endless. */
export function printable(string, most = 120) {
  const shown = [...string.slice(0, 2 * most)].slice(0, most).join("");
  const escapedText = shown.replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return shown.length < string.length ? `${escapedText}…` : escapedText;
}

const quoted = (name) => `"${printable(name)}"`;

// -- Container (rules C) ---------------------------------------------------------------------------------------------

const HEADER = {
  __metadata__: { "*": true },
  "*": { dtype: true, shape: true, data_offsets: true },
};

/** Checks that `list` is an array of numbers as J-5 has them; `rule` is for what is no such array at all. */
function integers(list, what, rule, where) {
  if (!Array.isArray(list) || !list.every((n) => typeof n === "number"))
    throw new FormatError(rule, `${what} is not an array of numbers`, where);
  if (list.some(Number.isNaN))
    throw new FormatError("J-5", `${what} has a number that is no integer from 0 to 2^53 - 1`, where);
}

/** The physical tensors, in the order of their data, with offsets in the file; `at` is where the header names them. */
function physicalTensors(header, dataBegin, dataLength) {
  const tensors = [];
  for (const { name, value: entry, at } of header.list) {
    if (name === "__metadata__") continue;
    const where = { tensor: name, offset: 8 + at };
    if (!isObject(entry)) throw new FormatError("C-6", "what describes the tensor is not an object", where);
    const dtype = entry.get("dtype");
    const shape = entry.get("shape");
    const offsets = entry.get("data_offsets");
    if (typeof dtype !== "string") throw new FormatError("C-6", "dtype is not a string", where);
    integers(shape, "shape", "C-6", where);
    integers(offsets, "data_offsets", "C-6", where);
    if (offsets.length !== 2) throw new FormatError("C-6", "data_offsets has not two numbers", where);
    if (shape.length > 64) throw new FormatError("C-8", "the shape has more than 64 members", where);
    const [begin, end] = offsets;
    if (begin > end || end > dataLength)
      throw new FormatError(
        "C-9",
        `data_offsets are ${begin} to ${end} in a data section of ${dataLength} bytes`,
        where,
      );
    const type = DTYPES.get(dtype);
    const numel = product(shape);
    if (type && 8 * (end - begin) !== numel * type.bits)
      throw new FormatError(
        "C-10",
        `${end - begin} bytes are not what the shape ${JSON.stringify(shape)} has in ${dtype}`,
        where,
      );
    tensors.push({
      name,
      dtype,
      shape,
      numel,
      begin: dataBegin + begin,
      end: dataBegin + end,
      at: 8 + at,
      owned: false,
    });
  }
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = dataBegin;
  for (const { name, begin, end } of tensors) {
    const where = { tensor: name, offset: begin };
    if (begin < at)
      throw new FormatError(
        "C-11",
        `the tensor begins ${at - begin} bytes before the end of the one before it`,
        where,
      );
    if (begin > at)
      throw new FormatError("C-12", `${begin - at} bytes before the tensor belong to none`, where);
    at = end;
  }
  const rest = dataBegin + dataLength - at;
  if (rest > 0) throw new FormatError("C-13", `${rest} bytes after the last tensor`, { offset: at });
  return tensors;
}

// -- Metadata (rules M) ----------------------------------------------------------------------------------------------

const ENDOR = {
  version: true,
  tensors: {
    "*": {
      dtype: true,
      shape: true,
      positions: true,
      values: true,
      digest: true,
      nnz: true,
      w: true,
      mantissa: true,
      patches: true,
    },
  },
};

/** Major and minor version of the endor object (M-2). */
function versionOf(endor, where) {
  const version = endor.get("version");
  if (typeof version !== "string" || !/^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})$/.test(version))
    throw new FormatError("M-2", "the endor object has no version such as 1.0", where);
  return version;
}

/** The entries of the endor object as logical tensors, without their parts (M-3 to M-8, C-8, D-1, T-1). */
function entries(endor, offset) {
  const members = endor.get("tensors");
  if (!(members instanceof Members))
    throw new FormatError("M-3", "the endor object has no object `tensors`", { offset });
  const keys = members.list;
  const tensors = keys.map(({ name, value }) => {
    if (!isObject(value))
      throw new FormatError("M-3", "the entry is not an object", { tensor: name, offset });
    return entry(name, value, { tensor: name, offset });
  });
  for (const { name } of keys) {
    const where = { tensor: name, offset };
    if (name === "__metadata__") throw new FormatError("T-1", "no tensor is named __metadata__", where);
    const inside = keys[lowerBound(keys, `${name}.endor.`)]?.name.startsWith(`${name}.endor.`);
    if (inside || members.find(`${name}.endor`))
      throw new FormatError("T-1", `another encoded tensor is named like a part of ${quoted(name)}`, where);
  }
  return tensors;
}

function entry(name, members, where) {
  const member = (key) => {
    const value = members.get(key);
    if (typeof value !== "string") throw new FormatError("M-4", `the entry has no string ${key}`, where);
    return value;
  };
  const [dtype, positions, values] = [member("dtype"), member("positions"), member("values")];
  const shape = members.get("shape");
  integers(shape, "the entry's shape", "M-4", where);
  if (shape.length > 64) throw new FormatError("C-8", "the entry's shape has more than 64 members", where);
  const digest = members.get("digest") === undefined ? null : member("digest");
  const [, algorithm, hex] = /^([a-z0-9_]+):([0-9a-f]+)$/.exec(digest ?? "none:0") ?? [];
  if (!algorithm || (algorithm === "xxh3_64" && hex.length !== 16))
    throw new FormatError("D-1", `${quoted(digest)} is not the form of a digest`, where);

  const type = DTYPES.get(dtype);
  const numel = product(shape);
  const tensor = {
    name,
    dtype,
    shape,
    numel,
    positions,
    values,
    digest,
    encoded: true,
    unsupported: null,
    parts: {},
    bytes: 0,
  };
  const known =
    type?.encodable &&
    ENCODINGS.has(`${positions} ${values}`) &&
    (values === "raw" || type.exponent !== null);
  if (!known) {
    tensor.unsupported = `positions ${quoted(positions)} with values ${quoted(values)} of ${quoted(dtype)}`;
    return tensor;
  }
  const count = (key, rule, least, most) => {
    const value = members.get(key);
    if (typeof value !== "number") throw new FormatError(rule, `the entry has no number ${key}`, where);
    if (Number.isNaN(value)) throw new FormatError("J-5", `${key} is no integer from 0 to 2^53 - 1`, where);
    if (value < least || value > most)
      throw new FormatError(rule, `${key} is ${value}, and not from ${least} to ${most}`, where);
    return value;
  };
  tensor.bits = type.bits;
  tensor.blocks = Math.ceil(numel / BLOCK);
  if (positions === "bitmap") tensor.nnz = count("nnz", "M-5", 0, numel);
  tensor.stored = tensor.nnz ?? numel;
  if (values === "split") {
    tensor.exponent = type.exponent;
    tensor.mantissaBits = type.mantissa;
    tensor.w = count("w", "M-8", 1, Math.min(4, type.exponent - 1));
    tensor.mantissa = count("mantissa", "M-8", 0, type.mantissa);
    tensor.patches = count("patches", "M-8", 0, tensor.stored);
  }
  return tensor;
}

// -- Parts of logical tensors (rules T) ------------------------------------------------------------------------------

/** The parts of an encoding, in order: role, name, dtype and shape (B-2). */
export function expectedParts({
  name,
  dtype,
  positions,
  values,
  numel,
  blocks,
  stored,
  bits,
  mantissa,
  w,
  patches,
}) {
  const split = values === "split";
  const bitmap = positions === "bitmap";
  const row = roundup(blocks + 1, 8);
  const rows = split ? (bitmap ? [2] : [1]) : [];
  const parts = [
    [
      "values",
      name,
      split ? "U8" : dtype,
      split ? [roundup(stored, 512) / GROUP, 8 * (1 + mantissa + w)] : [roundup(stored, 512 / bits)],
    ],
  ];
  if (bitmap) parts.push(["bitmap", `${name}.endor.bitmap`, "U8", [roundup(Math.ceil(numel / 8), 64)]]);
  parts.push(["index", `${name}.endor.index`, "I64", [...rows, row]]);
  if (split) {
    parts.push(["bases", `${name}.endor.bases`, "U8", [roundup(blocks, 64)]]);
    parts.push(["patches", `${name}.endor.patches`, "U8", [roundup(patches, 64), 3]]);
  }
  return parts;
}

const sameShape = (a, b) => a.length === b.length && a.every((size, i) => size === b[i]);

/** Gives each entry its parts and marks the physical tensors that belong to it (T-2 to T-5, T-7). */
function findParts(tensors, names) {
  for (const tensor of tensors) {
    const { name } = tensor;
    const first = names[lowerBound(names, name)];
    if (first?.name !== name)
      throw new FormatError("T-2", "there is no physical tensor of this name", { tensor: name });
    const belonging = [first];
    for (
      let i = lowerBound(names, `${name}.endor.`);
      i < names.length && names[i].name.startsWith(`${name}.endor.`);
      i += 1
    )
      belonging.push(names[i]);
    for (const one of belonging) {
      one.owned = true;
      tensor.bytes += one.end - one.begin;
    }
    tensor.at = first.begin;
    if (tensor.unsupported) continue;
    const expected = expectedParts(tensor);
    for (const [role, partName, dtype, shape] of expected) {
      const part = belonging.find((one) => one.name === partName);
      if (!part) throw new FormatError("T-2", `its part ${quoted(partName)} is missing`, { tensor: name });
      if (part.dtype !== dtype || !sameShape(part.shape, shape))
        throw new FormatError(
          "T-4",
          `the part ${quoted(partName)} is ${part.dtype} ${JSON.stringify(part.shape)} and not ${dtype} ${JSON.stringify(shape)}`,
          { tensor: name, offset: part.at },
        );
      tensor.parts[role] = part;
    }
    if (belonging.length > expected.length) {
      const stranger = belonging.find((one) => !expected.some(([, partName]) => one.name === partName));
      throw new FormatError("T-3", `${quoted(stranger.name)} is no part of this encoding`, {
        tensor: name,
        offset: stranger.at,
      });
    }
    if (sameShape(first.shape, tensor.shape))
      throw new FormatError("T-5", "its values have the shape of the tensor itself", {
        tensor: name,
        offset: first.at,
      });
  }
}

function plainTensor(part) {
  const { name, dtype, shape, numel, begin, end } = part;
  const type = DTYPES.get(dtype);
  const unsupported = type ? null : `dtype ${quoted(dtype)}`;
  const bits = type?.bits;
  return {
    name,
    dtype,
    shape,
    numel,
    bits,
    digest: null,
    encoded: false,
    unsupported,
    parts: { values: part },
    bytes: end - begin,
    at: begin,
  };
}

// -- Files -----------------------------------------------------------------------------------------------------------

/**
 * Opens a file: checks all rules J, C, M, T and D-1, for which the header alone is read. Files with a header of more than
 * `longestHeader` bytes, at most the limit of C-2, are unsupported (section 13): they may take 20 times that in memory.
 *
 * The result has `size` and `headerLength` in bytes; `metadata`, the user's own members as `{name, value}`; `version` of
 * Endor, null in a plain safetensors file; `physical`, what the header lists; and `tensors`, the logical ones, both in the
 * order of their data. If the version cannot be read, `unsupported` says so, and there are no logical tensors (V-1).
 *
 * A tensor has `name`, `dtype`, `shape`, `numel`, `bits` of an element, `bytes` in the file, and `unsupported`: null or
 * the reason. If it is `encoded` it has `positions`, `values`, `digest`, and `stored`, the number of stored elements;
 * with a bitmap `nnz`; with split values `w`, `mantissa` and `patches`.
 */
export async function open(source, { longestHeader = LONGEST_HEADER } = {}) {
  const { size } = source;
  if (size < 8) throw new FormatError("C-1", `the file has ${size} bytes`, { offset: 0 });
  const start = new DataView((await source.read(0, 8)).buffer);
  const headerLength = start.getUint32(0, true) + start.getUint32(4, true) * 2 ** 32;
  if (headerLength > LONGEST_HEADER)
    throw new FormatError("C-2", `a header of ${headerLength} bytes`, { offset: 0 });
  if (headerLength > longestHeader) throw new UnsupportedError(`a header of ${headerLength} bytes`);
  const dataBegin = 8 + headerLength;
  if (dataBegin > size)
    throw new FormatError("C-3", `a header of ${headerLength} bytes in a file of ${size}`, { offset: 0 });
  const bytes = await source.read(8, dataBegin);
  const malformed = malformedUtf8(bytes);
  if (malformed >= 0) throw new FormatError("C-4", "the header is not UTF-8", { offset: 8 + malformed });
  const header = parseJson(
    bytes,
    HEADER,
    (rule, message, at) => new FormatError(rule, message, { offset: 8 + at }),
    true,
  );

  const own = header.find("__metadata__");
  const where = { offset: 8 + (own?.at ?? 0) };
  if (own && !(own.value instanceof Members))
    throw new FormatError("C-7", "__metadata__ is not an object", where);
  const metadata = own?.value.list ?? [];
  for (const { name, value, at } of metadata)
    if (typeof value !== "string")
      throw new FormatError("C-7", `${quoted(name)} in __metadata__ is not a string`, { offset: 8 + at });

  const physical = physicalTensors(header, dataBegin, size - dataBegin);
  const names = [...physical].sort(byName);
  const file = { source, size, headerLength, physical, version: null, unsupported: null, tensors: [] };
  file.metadata = metadata.filter(({ name }) => name !== "endor").map(({ name, value }) => ({ name, value }));
  const endor = own?.value.find("endor");
  if (endor) {
    const offset = 8 + endor.at;
    const inner = parseJson(
      new TextEncoder().encode(endor.value),
      ENDOR,
      (rule, message, at) => new FormatError(rule, `the endor object, byte ${at}: ${message}`, { offset }),
    );
    file.version = versionOf(inner, { offset });
    if (!file.version.startsWith("1.")) {
      file.unsupported = `version ${file.version} of the format`;
      return file;
    }
    file.tensors = entries(inner, offset);
    findParts(file.tensors, names);
  } else {
    const lost = names.find(({ name }) => /\.endor\.(index|bitmap)$/.test(name));
    if (lost)
      throw new FormatError("T-6", "a part of an Endor tensor in a file that has lost its metadata", {
        tensor: lost.name,
        offset: lost.at,
      });
  }
  for (const one of physical) if (!one.owned) file.tensors.push(plainTensor(one));
  file.tensors.sort((a, b) => a.at - b.at);
  return file;
}

// -- Decoding (rules B and E) ----------------------------------------------------------------------------------------

const RUN = 64; // blocks that are read and decoded together
const AHEAD = 4; // runs or pieces that are read while one is looked at
const PIECE = 1 << 20; // bytes of a plain tensor that are read together

/** Bit patterns are copied by typed arrays of their own width; eight bytes go as two words, as NaNs may not survive as doubles. */
const typed = (bits) => (bits === 8 ? Uint8Array : bits === 16 ? Uint16Array : Uint32Array);

function popcount(word) {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** What `work` promises for each of `list`, in order, while it is at work on the next ones: waiting for a disk is cheap. */
async function* ahead(list, work) {
  const waiting = [];
  for (const one of list) {
    const promise = work(one);
    promise.catch(() => {}); // it is met in its turn, unless nobody asks any more
    waiting.push(promise);
    if (waiting.length > AHEAD) yield waiting.shift();
  }
  yield* waiting;
}

function* steps(from, to, step) {
  for (let at = from; at < to; at += step) yield [at, Math.min(at + step, to)];
}

function readable(tensor) {
  if (tensor.unsupported) throw new UnsupportedError(tensor.unsupported, { tensor: tensor.name });
}

/**
 * The dense bytes of some blocks of a tensor, a Uint8Array for each run `[first, end]` of them.
 *
 * All that B-11 asks for is checked: of the blocks of a run before they are given out, and what concerns the tensor as
 * a whole before the first.
 */
export async function* blocks(file, tensor, runs) {
  readable(tensor);
  const { source } = file;
  if (!tensor.encoded) {
    const { begin } = tensor.parts.values;
    const offset = (block) => begin + (Math.min(block * BLOCK, tensor.numel) * tensor.bits) / 8;
    yield* ahead(runs, async ([first, end]) => source.read(offset(first), offset(end)));
    return;
  }
  await checkFrame(
    source,
    tensor,
    runs.some(([, end]) => end >= tensor.blocks),
  );
  yield* ahead(runs, ([first, end]) => decodeRun(source, tensor, first, end));
}

/**
 * The dense bytes of the elements `start` to `stop` - 1 of a tensor in row-major order, in pieces. What is checked is
 * what `blocks` checks, so whoever asks for all elements and gets to the end has had every rule B and E checked.
 */
export async function* elements(file, tensor, start = 0, stop = tensor.numel) {
  readable(tensor);
  if (!(start >= 0 && start <= stop && stop <= tensor.numel))
    throw new UnsupportedError(`the tensor has no elements ${start} to ${stop}`, { tensor: tensor.name });
  const [from, to] = [(start * tensor.bits) / 8, (stop * tensor.bits) / 8];
  if (!Number.isInteger(from) || !Number.isInteger(to))
    throw new UnsupportedError("half a byte", { tensor: tensor.name });
  if (!tensor.encoded) {
    const { begin } = tensor.parts.values;
    yield* ahead(steps(from, to, PIECE), async ([at, end]) => file.source.read(begin + at, begin + end));
    return;
  }
  // For no elements there is nothing to check, unless they are all that there are.
  if (start === stop && tensor.numel > 0) return;
  const runs = [...steps(Math.floor(start / BLOCK), Math.ceil(stop / BLOCK), RUN)];
  let at = Math.floor(start / BLOCK) * BLOCK * (tensor.bits / 8);
  for await (const bytes of blocks(file, tensor, runs.length ? runs : [[0, 0]])) {
    yield bytes.subarray(Math.max(from - at, 0), to - at);
    at += bytes.length;
  }
}

/** `bytes` from `from` on have to be 0. */
function zeros(bytes, from, rule, tensor, part, begin) {
  for (let i = from; i < bytes.length; i += 1)
    if (bytes[i] !== 0)
      throw new FormatError(rule, `the padding of ${part} is not 0`, {
        tensor: tensor.name,
        offset: begin + i,
      });
}

/** The rows of the index: number, what the last entry is, and what it counts. */
function rowsOf({ positions, values, nnz, patches }) {
  const rows = [];
  if (positions === "bitmap") rows.push({ row: rows.length, last: nnz, counts: "stored elements" });
  if (values === "split") rows.push({ row: rows.length, last: patches, counts: "patches" });
  return rows;
}

/** An entry of the index as a number; those past 2^53 are rounded, and yet larger than all that is allowed. */
const entryAt = (view, i) => view.getUint32(8 * i, true) + view.getInt32(8 * i + 4, true) * 2 ** 32;

/** Checks first and last entries of the rows of the index, and with `padding` all that follows what counts. */
async function checkFrame(source, tensor, padding) {
  const { name, parts, blocks, stored, bits, values, patches } = tensor;
  const length = roundup(blocks + 1, 8);
  for (const { row, last, counts } of rowsOf(tensor)) {
    const begin = parts.index.begin + 8 * row * length;
    const first = new DataView((await source.read(begin, begin + 8)).buffer);
    if (entryAt(first, 0) !== 0)
      throw new FormatError("B-4", `the first entry for ${counts} is not 0`, { tensor: name, offset: begin });
    const from = begin + 8 * blocks;
    const tail = await source.read(from, begin + 8 * length);
    const entry = entryAt(new DataView(tail.buffer), 0);
    if (entry !== last)
      throw new FormatError("B-7", `the last entry for ${counts} is ${entry} and not ${last}`, {
        tensor: name,
        offset: from,
      });
    if (padding) zeros(tail, 8, "B-8", tensor, "the index", from);
  }
  if (!padding) return;
  const rest = async (part, from, rule) =>
    zeros(await source.read(part.begin + from, part.end), 0, rule, tensor, part.name, part.begin + from);
  if (values === "raw") {
    await rest(parts.values, (stored * bits) / 8, "B-9");
    return;
  }
  await rest(parts.bases, blocks, "E-4");
  await rest(parts.patches, 3 * patches, "E-8");
  const group = Math.floor(stored / GROUP);
  const row = rowBytes(tensor);
  const bytes = await source.read(parts.values.begin + group * row, parts.values.end);
  const { residues, codes } = unpack(bytes, tensor);
  for (let i = stored % GROUP; i < residues.length; i += 1)
    if (residues[i] !== 0 || codes[i] !== 0)
      throw new FormatError(
        "E-2",
        `element ${stored - (stored % GROUP) + i} of ${stored} in the values is not 0`,
        { tensor: name, offset: parts.values.begin + (group + Math.floor(i / GROUP)) * row },
      );
}

/** The dense bytes of the blocks `first` to `end` - 1, after all checks that concern them. */
async function decodeRun(source, tensor, first, end) {
  const { parts, numel, values, bits } = tensor;
  const count = Math.min(end * BLOCK, numel) - first * BLOCK;
  const index = await Promise.all(rowsOf(tensor).map((row) => readIndex(source, tensor, row, first, end)));
  const bitmap = parts.bitmap ? await readBitmap(source, tensor, first, end, index[0]) : null;
  const ranks = bitmap
    ? index[0]
    : Float64Array.from({ length: end - first + 1 }, (_, k) => Math.min((first + k) * BLOCK, numel));
  const from = ranks[0];
  const to = ranks[end - first];
  let stored;
  if (values === "raw") {
    const { begin } = parts.values;
    const bytes = await source.read(begin + (from * bits) / 8, begin + (to * bits) / 8);
    stored = new (typed(bits))(bytes.buffer);
  } else stored = await joinSplit(source, tensor, first, ranks, index.at(-1));
  return new Uint8Array(bitmap ? scatter(bitmap, stored, count, tensor, first).buffer : stored.buffer);
}

/** Entries `first` to `end` of a row of the index, which neither fall nor leave what it counts (B-5). */
async function readIndex(source, tensor, { row, last, counts }, first, end) {
  const { name, parts, blocks } = tensor;
  const begin = parts.index.begin + 8 * (row * roundup(blocks + 1, 8) + first);
  const view = new DataView((await source.read(begin, begin + 8 * (end - first + 1))).buffer);
  const entriesOfRun = new Float64Array(end - first + 1);
  let least = 0;
  for (let k = 0; k < entriesOfRun.length; k += 1) {
    const entry = entryAt(view, k);
    if (!(entry >= least && entry <= last))
      throw new FormatError(
        "B-5",
        `entry ${first + k} for ${counts} is ${entry}, and not from ${least} to ${last}`,
        { tensor: name, offset: begin + 8 * k },
      );
    entriesOfRun[k] = entry;
    least = entry;
  }
  return entriesOfRun;
}

/** The bitmap of some blocks, as words of 32 bits; what the index says of it is right (B-3, B-6). */
async function readBitmap(source, tensor, first, end, index) {
  const { name, parts, numel } = tensor;
  const begin = parts.bitmap.begin + (first * BLOCK) / 8;
  const bytes = await source.read(begin, Math.min(parts.bitmap.begin + (end * BLOCK) / 8, parts.bitmap.end));
  if (end === tensor.blocks) {
    const used = numel - first * BLOCK;
    const past = Math.ceil(used / 8);
    zeros(bytes, past, "B-3", tensor, "the bitmap", begin);
    if (used % 8 && bytes[past - 1] >> (used % 8))
      throw new FormatError("B-3", "a bit of the bitmap past the last element is 1", {
        tensor: name,
        offset: begin + past - 1,
      });
  }
  const words = new Uint32Array(bytes.buffer);
  for (let k = 0; k < end - first; k += 1) {
    let ones = 0;
    const to = Math.min((k + 1) * (BLOCK / 32), words.length);
    for (let i = k * (BLOCK / 32); i < to; i += 1) ones += popcount(words[i]);
    if (ones !== index[k + 1] - index[k])
      throw new FormatError(
        "B-6",
        `block ${first + k} has ${ones} elements in the bitmap and ${index[k + 1] - index[k]} in the index`,
        { tensor: name, offset: begin + (k * BLOCK) / 8 },
      );
  }
  return words;
}

/** The bitmap of the blocks `first` to `end` - 1 of a tensor that has one, as bytes, checked as far as it can be alone. */
export async function bitmapOf(file, tensor, first, end) {
  const [row] = rowsOf(tensor);
  return new Uint8Array(
    (await readBitmap(file.source, tensor, first, end, await readIndex(file.source, tensor, row, first, end)))
      .buffer,
  );
}

/** Puts stored elements where the bits are 1 (B-10). Bits and elements are as many, which B-3 and B-6 have made sure of. */
function scatter(words, stored, count, tensor, first) {
  const pair = tensor.bits === 64;
  const out = new stored.constructor(pair ? 2 * count : count);
  let rank = 0;
  for (let i = 0; i < words.length; i += 1) {
    for (let word = words[i]; word !== 0; rank += 1) {
      const bit = 31 - Math.clz32(word & -word);
      word &= word - 1;
      const at = 32 * i + bit;
      let pattern;
      if (pair) {
        out[2 * at] = stored[2 * rank];
        out[2 * at + 1] = stored[2 * rank + 1];
        pattern = out[2 * at] | out[2 * at + 1];
      } else {
        pattern = stored[rank];
        out[at] = pattern;
      }
      if (pattern === 0)
        throw new FormatError("B-10", `element ${first * BLOCK + at} is stored, and is a zero element`, {
          tensor: tensor.name,
          offset: tensor.parts.values.begin,
        });
    }
  }
  return out;
}

/** Bytes of a group of split values. */
const rowBytes = ({ mantissa, w }) => 8 * (1 + mantissa + w);

/** Puts the 64 bits of a plane at bit `shift` of 64 numbers. */
function plane(bytes, at, numbers, first, shift) {
  for (let k = 0; k < 8; k += 1) {
    const byte = bytes[at + k];
    const i = first + 8 * k;
    numbers[i] |= (byte & 1) << shift;
    numbers[i + 1] |= ((byte >> 1) & 1) << shift;
    numbers[i + 2] |= ((byte >> 2) & 1) << shift;
    numbers[i + 3] |= ((byte >> 3) & 1) << shift;
    numbers[i + 4] |= ((byte >> 4) & 1) << shift;
    numbers[i + 5] |= ((byte >> 5) & 1) << shift;
    numbers[i + 6] |= ((byte >> 6) & 1) << shift;
    numbers[i + 7] |= (byte >> 7) << shift;
  }
}

/** Residues and codes of groups of split values (E-1). */
function unpack(bytes, tensor) {
  const { mantissa, w } = tensor;
  const row = rowBytes(tensor);
  const whole = (1 + mantissa) >> 3; // P, the bytes of a residue
  const loose = (1 + mantissa) & 7; // R, its bits besides
  const groups = bytes.length / row;
  const residues = new Uint32Array(groups * GROUP);
  const codes = new Uint8Array(groups * GROUP);
  for (let g = 0; g < groups; g += 1) {
    const at = g * row;
    const first = g * GROUP;
    for (let p = 0; p < whole; p += 1)
      for (let j = 0; j < GROUP; j += 1) residues[first + j] |= bytes[at + GROUP * p + j] << (8 * p);
    const planes = at + GROUP * whole;
    for (let q = 0; q < loose; q += 1) plane(bytes, planes + 8 * q, residues, first, 8 * whole + q);
    for (let q = 0; q < w; q += 1) plane(bytes, planes + 8 * (loose + q), codes, first, q);
  }
  return { residues, codes };
}

/** The stored elements of some blocks with split values (E-3, E-5 to E-7). `ranks` and `patchIndex`: by block, and one more. */
async function joinSplit(source, tensor, first, ranks, patchIndex) {
  const { name, parts, bits, exponent: E, mantissaBits: M, mantissa: m, w } = tensor;
  const blocks = ranks.length - 1;
  const from = Math.floor(ranks[0] / GROUP);
  const row = rowBytes(tensor);
  for (let k = 0; k < blocks; k += 1)
    // before they are read: an index may claim any number of patches
    if (patchIndex[k + 1] - patchIndex[k] > ranks[k + 1] - ranks[k])
      throw new FormatError("E-5", `block ${first + k} has more patches than stored elements`, {
        tensor: name,
        offset: parts.index.begin,
      });
  const { begin } = parts.values;
  const patchBegin = parts.patches.begin + 3 * patchIndex[0];
  const [bytes, bases, patches] = await Promise.all([
    source.read(begin + from * row, begin + Math.ceil(ranks[blocks] / GROUP) * row),
    source.read(parts.bases.begin + first, parts.bases.begin + first + blocks),
    source.read(patchBegin, parts.patches.begin + 3 * patchIndex[blocks]),
  ]);
  const { residues, codes } = unpack(bytes, tensor);

  const out = new (typed(bits))(ranks[blocks] - ranks[0]);
  const skipped = ranks[0] - from * GROUP; // stored elements of the first group that belong to blocks before
  const window = 1 << w;
  const mask = (1 << m) - 1;
  const element = (i, exponent) =>
    ((residues[i] >>> m) << (E + M)) | (exponent << M) | ((residues[i] & mask) << (M - m));
  for (let k = 0; k < blocks; k += 1) {
    const stored = ranks[k + 1] - ranks[k];
    const base = bases[k];
    if (base > (1 << E) - window || (stored === 0 && base !== 0))
      throw new FormatError("E-3", `block ${first + k} has the base ${base}`, {
        tensor: name,
        offset: parts.bases.begin + first + k,
      });
    const begin = ranks[k] - ranks[0];
    for (let r = begin; r < begin + stored; r += 1) out[r] = element(skipped + r, base + codes[skipped + r]);
    let before = -1;
    for (let q = patchIndex[k] - patchIndex[0]; q < patchIndex[k + 1] - patchIndex[0]; q += 1) {
      const where = { tensor: name, offset: patchBegin + 3 * q };
      const rank = patches[3 * q] | (patches[3 * q + 1] << 8);
      const exponent = patches[3 * q + 2];
      if (rank <= before || rank >= stored)
        throw new FormatError(
          "E-5",
          `a patch of block ${first + k} is for rank ${rank}, after ${before} and of ${stored}`,
          where,
        );
      if (exponent >= 1 << E || (exponent >= base && exponent < base + window))
        throw new FormatError(
          "E-6",
          `a patch of block ${first + k} has the exponent ${exponent}; the window begins at ${base}`,
          where,
        );
      const i = skipped + begin + rank;
      if (codes[i] !== 0)
        throw new FormatError(
          "E-7",
          `rank ${rank} of block ${first + k} has a patch, and the code ${codes[i]}`,
          where,
        );
      out[begin + rank] = element(i, exponent);
      before = rank;
    }
  }
  return out;
}

// -- Digests (rules D) -----------------------------------------------------------------------------------------------

/** The members of an entry that its digest covers, in canonical order (D-2). */
const COVERED = ["dtype", "mantissa", "nnz", "patches", "positions", "shape", "values", "w"];

/**
 * What the digest of an encoded tensor should be, computed from its bytes; null if it has none, or is plain (D-3).
 * Of an unknown algorithm it is an UnsupportedError (D-4). `progress(bytes)` is told what has been read.
 */
export async function digestOf(file, tensor, progress = () => {}) {
  if (!tensor.digest || tensor.unsupported) return null;
  const [algorithm] = tensor.digest.split(":");
  if (algorithm !== "xxh3_64") throw new UnsupportedError(`digests of ${algorithm}`, { tensor: tensor.name });
  const members = COVERED.filter((key) => tensor[key] !== undefined).map(
    (key) => `"${key}":${JSON.stringify(tensor[key])}`,
  );
  const hash = new Xxh3();
  hash.update(new TextEncoder().encode(`{${JSON.stringify(tensor.name)}:{${members.join(",")}}}`));
  for (const { begin, end } of Object.values(tensor.parts))
    for (let at = begin; at < end; at += PIECE) {
      const bytes = await file.source.read(at, Math.min(at + PIECE, end));
      hash.update(bytes);
      progress(bytes.length);
    }
  return `xxh3_64:${hash.digest()}`;
}

/** Checks the digest of a tensor, if it has one (D-2). */
export async function checkDigest(file, tensor, progress) {
  const digest = await digestOf(file, tensor, progress);
  if (digest !== null && digest !== tensor.digest)
    throw new FormatError("D-2", `the digest is ${tensor.digest}, that of the bytes ${digest}`, {
      tensor: tensor.name,
      offset: tensor.at,
    });
}

const SECRET = Uint8Array.from(
  (
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
  ).match(/../g),
  (pair) => parseInt(pair, 16),
);
const P32_1 = 0x9e3779b1n;
const P32_2 = 0x85ebca77n;
const P32_3 = 0xc2b2ae3dn;
const P64_1 = 0x9e3779b185ebca87n;
const P64_2 = 0xc2b2ae3d27d4eb4fn;
const P64_3 = 0x165667b19e3779f9n;
const P64_4 = 0x85ebca77c2b2ae63n;
const P64_5 = 0x27d4eb2f165667c5n;
const PMX = 0x165667919e3779f9n;
const MASK = (1n << 64n) - 1n;

const bigWord = (bytes, at) => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true);
const fold = (a, b) => {
  const p = a * b;
  return (p & MASK) ^ (p >> 64n);
};
const avalanche = (h) => {
  const mixed = ((h ^ (h >> 37n)) * PMX) & MASK;
  return mixed ^ (mixed >> 32n);
};
const words32 = (bytes, at, count) =>
  Int32Array.from({ length: count }, (_, i) => new DataView(bytes.buffer).getInt32(at + 4 * i, true));

/** The secret as words of 32 bits, from byte 0 on, and from byte 121 on, where the last stripe takes it. */
const KEYS = words32(SECRET, 0, 48);
const LAST_KEYS = words32(SECRET, 121, 16);
const SCRAMBLE_KEYS = KEYS.subarray(32);
const FACTOR = Number(P32_1) | 0;

/** Upper half of the product of two unsigned numbers of 32 bits. */
function high(a, b) {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const p01 = Math.imul(a0, b1);
  const p10 = Math.imul(a1, b0);
  const middle = (Math.imul(a0, b0) >>> 16) + (p01 & 0xffff) + (p10 & 0xffff);
  return (Math.imul(a1, b1) + (p01 >>> 16) + (p10 >>> 16) + (middle >>> 16)) | 0;
}

/**
 * XXH3-64 with seed 0 of more than 128 bytes (annex A), fed in pieces. Lanes are pairs of 32-bit words, the lower one
 * first: BigInt would take a hundred times as long.
 */
export class Xxh3 {
  static #CAPACITY = 1 << 16; // a multiple of 1024, after which lanes are scrambled
  #total = 0;
  #fill = 0;
  // The 64 bytes before those that are waiting stay in front of them, for the last stripe.
  #buffer = new Uint8Array(64 + Xxh3.#CAPACITY);
  #words = new Int32Array(this.#buffer.buffer);
  #lanes = new Int32Array(
    new BigUint64Array([P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]).buffer,
  );

  update(bytes) {
    this.#total += bytes.length;
    for (let at = 0; at < bytes.length;) {
      // What fills the buffer is not taken before something follows: the last stripe is another.
      if (this.#fill === Xxh3.#CAPACITY) {
        for (let i = 0; i < Xxh3.#CAPACITY / 64; i += 1)
          this.#stripe(16 + 16 * i, KEYS, 2 * (i % 16), i % 16 === 15);
        this.#buffer.copyWithin(0, Xxh3.#CAPACITY);
        this.#fill = 0;
      }
      const size = Math.min(bytes.length - at, Xxh3.#CAPACITY - this.#fill);
      this.#buffer.set(bytes.subarray(at, at + size), 64 + this.#fill);
      this.#fill += size;
      at += size;
    }
    return this;
  }

  /** 16 hexadecimal digits. */
  digest() {
    return (this.#total > 240 ? this.#long() : this.#short()).toString(16).padStart(16, "0");
  }

  #short() {
    const n = this.#total;
    if (n < 129) throw new RangeError("XXH3-64 of 128 bytes or fewer is not needed here");
    const x = this.#buffer.subarray(64, 64 + n);
    const mix = (i, k) =>
      fold(bigWord(x, i) ^ bigWord(SECRET, k), bigWord(x, i + 8) ^ bigWord(SECRET, k + 8));
    let h = BigInt(n) * P64_1;
    for (let i = 0; i < 8; i += 1) h += mix(16 * i, 16 * i);
    h = avalanche(h & MASK);
    for (let i = 8; i < Math.floor(n / 16); i += 1) h += mix(16 * i, 16 * (i - 8) + 3);
    h += mix(n - 16, 119);
    return avalanche(h & MASK);
  }

  #long() {
    const stripes = Math.floor((this.#fill - 1) / 64);
    for (let i = 0; i < stripes; i += 1) this.#stripe(16 + 16 * i, KEYS, 2 * (i % 16), i % 16 === 15);
    const tail = this.#buffer.slice(this.#fill, this.#fill + 64);
    const kept = this.#words;
    this.#words = new Int32Array(tail.buffer);
    this.#stripe(0, LAST_KEYS, 0, false);
    this.#words = kept;
    const lanes = new BigUint64Array(this.#lanes.buffer);
    let h = (BigInt(this.#total) * P64_1) & MASK;
    for (let j = 0; j < 8; j += 2)
      h += fold(lanes[j] ^ bigWord(SECRET, 11 + 8 * j), lanes[j + 1] ^ bigWord(SECRET, 19 + 8 * j));
    return avalanche(h & MASK);
  }

  /** Takes in 64 bytes from word `at` on, and scrambles the lanes if they are the last of 1024. */
  #stripe(at, keys, key, scramble) {
    const lanes = this.#lanes;
    const words = this.#words;
    for (let j = 0; j < 16; j += 2) {
      const low = words[at + j];
      const up = words[at + j + 1];
      const other = j ^ 2;
      const sum = (lanes[other] >>> 0) + (low >>> 0);
      lanes[other] = sum;
      lanes[other + 1] += up + (sum > 0xffffffff ? 1 : 0);
      const a = low ^ keys[key + j];
      const b = up ^ keys[key + j + 1];
      const added = (lanes[j] >>> 0) + (Math.imul(a, b) >>> 0);
      lanes[j] = added;
      lanes[j + 1] += high(a, b) + (added > 0xffffffff ? 1 : 0);
    }
    if (!scramble) return;
    for (let j = 0; j < 16; j += 2) {
      const low = lanes[j] ^ (lanes[j + 1] >>> 15) ^ SCRAMBLE_KEYS[j];
      const up = lanes[j + 1] ^ SCRAMBLE_KEYS[j + 1];
      lanes[j] = Math.imul(low, FACTOR);
      lanes[j + 1] = high(low, FACTOR) + Math.imul(up, FACTOR);
    }
  }
}
