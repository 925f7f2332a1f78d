/**
 * Adapter for the decoder of the inspector, docs/inspector/endor.js, under Node.
 *
 *     python conformance/run.py --batch -- node conformance/adapters/inspector.js
 */

import { createHash } from "node:crypto";
import { closeSync, openSync, fstatSync, readSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

import { openCheckpoint } from "../../docs/inspector/checkpoint.js";
import { FormatError, UnsupportedError, checkDigest, elements, open } from "../../docs/inspector/endor.js";

const EXIT = { accept: 0, reject: 1, unsupported: 2 };
const NOT_IMPLEMENTED = 64;

/** Does something with an open file as a source. */
async function reading(path, work) {
  const descriptor = openSync(path, "r");
  try {
    return await work(source(descriptor));
  } finally {
    closeSync(descriptor);
  }
}

function source(descriptor) {
  return {
    size: fstatSync(descriptor).size,
    async read(begin, end) {
      const bytes = new Uint8Array(end - begin);
      for (let done = 0; done < bytes.length;) {
        const count = readSync(descriptor, bytes, done, bytes.length - done, begin + done);
        if (count === 0) throw new Error("the file has changed while it was read");
        done += count;
      }
      return bytes;
    },
  };
}

async function sha256(pieces) {
  const hash = createHash("sha256");
  for await (const bytes of pieces) hash.update(bytes);
  return hash.digest("hex");
}

/** A logical tensor as the contract has it. */
async function listed(file, tensor, digests) {
  const { name, dtype, shape } = tensor;
  if (tensor.unsupported) return { name, dtype, shape, unsupported: tensor.unsupported };
  const answer = { name, dtype, shape, sha256: await sha256(elements(file, tensor)) };
  if (!digests) return answer;
  try {
    await checkDigest(file, tensor);
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error;
    return { ...answer, unverified: tensor.digest.split(":")[0] };
  }
  return answer;
}

async function decode(path, digests) {
  if (statSync(path).isDirectory()) return decodeDirectory(path, digests);
  return reading(path, async (one) => {
    const file = await open(one);
    return overall(
      file.unsupported,
      file.tensors.map((tensor) => ({ tensor, file })),
      digests,
    );
  });
}

async function decodeDirectory(path, digests) {
  const names = readdirSync(path).filter((name) =>
    statSync(join(path, name), { throwIfNoEntry: false })?.isFile(),
  );
  const descriptors = names.map((name) => openSync(join(path, name), "r"));
  try {
    const entries = names.map((name, i) => ({ name, source: source(descriptors[i]) }));
    const { files, tensors } = await openCheckpoint(entries);
    return await overall(files.find(({ file }) => file.unsupported)?.file.unsupported, tensors, digests);
  } finally {
    descriptors.forEach((descriptor) => closeSync(descriptor));
  }
}

async function overall(reason, logical, digests) {
  const tensors = [];
  for (const { tensor, file } of logical) tensors.push(await listed(file, tensor, digests));
  const spoilt = tensors.find((one) => one.unsupported ?? one.unverified);
  const why = reason ?? spoilt?.unsupported ?? spoilt?.unverified;
  return why ? { result: "unsupported", reason: why, tensors } : { result: "accept", tensors };
}

async function slice(path, name, start, stop) {
  return reading(path, async (one) => {
    const file = await open(one);
    if (file.unsupported) throw new UnsupportedError(file.unsupported);
    const tensor = file.tensors.find((candidate) => candidate.name === name);
    if (!tensor) throw new UnsupportedError("no logical tensor has this name");
    return { result: "accept", sha256: await sha256(elements(file, tensor, Number(start), Number(stop))) };
  });
}

/** Exit status and document for the arguments of a request. */
async function answer([operation, path, ...rest]) {
  try {
    if (operation !== "decode" && operation !== "slice") return [NOT_IMPLEMENTED, {}];
    const output =
      operation === "decode" ? await decode(path, rest.includes("--digests")) : await slice(path, ...rest);
    return [EXIT[output.result], output];
  } catch (error) {
    if (error instanceof FormatError) {
      const { rule, tensor, offset, message } = error;
      return [EXIT.reject, { result: "reject", rule, tensor, offset, message }];
    }
    if (error instanceof UnsupportedError)
      return [EXIT.unsupported, { result: "unsupported", reason: error.message, tensors: [] }];
    throw error;
  }
}

/** Lines that end with a line feed alone: `readline` would also end them at U+2028. */
async function* lines(stream) {
  let rest = "";
  for await (const piece of stream.setEncoding("utf-8")) {
    const parts = (rest + piece).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

if (process.argv[2] === "batch")
  for await (const line of lines(process.stdin)) {
    const [exit, output] = await answer(JSON.parse(line).args);
    process.stdout.write(`${JSON.stringify({ exit, output })}\n`);
  }
else {
  const [exit, output] = await answer(process.argv.slice(2));
  process.stdout.write(`${JSON.stringify(output)}\n`);
  process.exitCode = exit;
}
