/** Bit patterns as the numbers that they stand for. */

import { DTYPES } from "./endor.js";

/** Exponent bias, and what an exponent of all ones means, of the floats that JavaScript does not know. */
const SMALL = {
  F8_E4M3: { bias: 7, nan: (bits) => (bits & 0x7f) === 0x7f, infinities: false },
  F8_E5M2: { bias: 15, nan: () => false, infinities: true },
  F8_E4M3FNUZ: { bias: 8, nan: (bits) => bits === 0x80, infinities: false },
  F8_E5M2FNUZ: { bias: 16, nan: (bits) => bits === 0x80, infinities: false },
  F16: { bias: 15, nan: () => false, infinities: true },
};

function small(bits, dtype) {
  const { exponent: E, mantissa: M } = DTYPES.get(dtype);
  const { bias, nan, infinities } = SMALL[dtype];
  if (nan(bits)) return NaN;
  const sign = bits >> (E + M) ? -1 : 1;
  const exponent = (bits >> M) & ((1 << E) - 1);
  const fraction = bits & ((1 << M) - 1);
  if (infinities && exponent === (1 << E) - 1) return fraction ? NaN : sign * Infinity;
  return (
    sign *
    (exponent ? (1 + fraction / 2 ** M) * 2 ** (exponent - bias) : (fraction / 2 ** M) * 2 ** (1 - bias))
  );
}

/** The value of the one element that `bytes` hold, as text; for types of less than a byte null. */
export function valueText(bytes, dtype) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  switch (dtype) {
    case "BOOL":
      return bytes[0] === 0 ? "false" : bytes[0] === 1 ? "true" : String(bytes[0]);
    case "U8":
      return String(bytes[0]);
    case "I8":
      return String(view.getInt8(0));
    case "U16":
      return String(view.getUint16(0, true));
    case "I16":
      return String(view.getInt16(0, true));
    case "U32":
      return String(view.getUint32(0, true));
    case "I32":
      return String(view.getInt32(0, true));
    case "U64":
      return String(view.getBigUint64(0, true));
    case "I64":
      return String(view.getBigInt64(0, true));
    case "F64":
      return float(view.getFloat64(0, true), 17);
    case "F32":
      return float(view.getFloat32(0, true), 9);
    case "C64":
      return `${float(view.getFloat32(0, true), 9)} + ${float(view.getFloat32(4, true), 9)}i`;
    case "BF16":
      return float(new Float32Array(new Uint32Array([view.getUint16(0, true) << 16]).buffer)[0], 4);
    case "F16":
      return float(small(view.getUint16(0, true), dtype), 5);
    case "F8_E8M0":
      return bytes[0] === 0xff ? "NaN" : `2^${bytes[0] - 127}`;
    default:
      return dtype in SMALL ? float(small(bytes[0], dtype), 4) : null;
  }
}

/** The shortest text that tells a value of this many digits; a negative zero is told too. */
const float = (value, digits) =>
  Object.is(value, -0) ? "-0" : String(Number.isFinite(value) ? Number(value.toPrecision(digits)) : value);

/** The bit pattern in hexadecimal, most significant byte first. */
export const patternText = (bytes) =>
  `0x${Array.from(bytes, (b) => b.toString(16).padStart(2, "0"))
    .reverse()
    .join("")}`;
