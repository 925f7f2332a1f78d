/**
 * Reads Endor checkpoints: several files of one directory, or of one drop (section 11, rules K).
 *
 *     const { files, tensors } = await openCheckpoint([{ name: "model.endor.safetensors", source }, ...]);
 *
 * `entries` are the files in the directory itself, with sources as `endor.js` has them. Other files than weights, their
 * indices and configs are let alone.
 */

import {
  FormatError,
  Members,
  UnsupportedError,
  lowerBound,
  malformedUtf8,
  open,
  parseJson,
  printable,
} from "./endor.js";

const WEIGHTS = /^model(\.safetensors|[.-].*\.safetensors)$/s;
const ENDOR_WEIGHTS = /^model\.endor(\.safetensors|[.-].*\.safetensors)$/s;
const INDEX = /^model\.safetensors\.index(\..*)?\.json$/s;
const ENDOR_INDEX = /^model\.safetensors\.index\.endor(\..+)?\.json$/s;
const KEPT_INDEX = /^model\.safetensors\.index\.dense(\..+)?\.json$/s;
const SHARD = /^model\.endor(\..+)?-[0-9]{5}-of-[0-9]{5}\.safetensors$/s;
const PYTORCH = /^pytorch_model.*\.bin$/s;
const CONFIGS = ["config.json", "config.dense.json"];
const LONGEST_TEXT = 100_000_000; // section 13

const quoted = (name) => `"${printable(name)}"`;
const variantOf = (pattern, name) => pattern.exec(name)[1] ?? "";
const OTHERWISE = /^model\.endor-(.+)\.file\.safetensors$/s;
const NO_NAME = /^\.{0,2}$|[/\\:\u0000-\u001f]/;

const escaped = (name) =>
  name.replace(
    /[%/\\:\u0000-\u001f]/g,
    (one) => `%${one.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`,
  );

/** Whether a dense file is named so that `.endor` is put behind `model`, and no more. */
const isExpressible = (name) => {
  const endor = name.replace(/^model/, "model.endor");
  const plain = WEIGHTS.test(name) && !/[/\\:\u0000-\u001f]/.test(name);
  return plain && !ENDOR_WEIGHTS.test(name) && !OTHERWISE.test(endor);
};

/** The name of the dense weights that Endor weights are restored to (K-11). */
function denseName(name) {
  const match = OTHERWISE.exec(name);
  if (!match) return name.replace(/^model\.endor/, "model");
  const dense = match[1].replace(/%([0-9A-F]{2})/g, (_, code) => String.fromCharCode(parseInt(code, 16)));
  const good = escaped(dense) === match[1] && !dense.split("/").some((part) => NO_NAME.test(part));
  if (!good || isExpressible(`${dense}.safetensors`))
    throw broken("K-11", `${quoted(name)} stands for no name of dense weights`, name);
  return `${dense}.safetensors`;
}

/** Whether these names are those of an Endor checkpoint, and not of loose files. */
export const isCheckpoint = (names) =>
  names.some((name) => ENDOR_WEIGHTS.test(name) || ENDOR_INDEX.test(name));

/**
 * Checks rules K, and opens all Endor weights. `files` are `{name, file}` and `tensors` `{tensor, file, fileName}`, the
 * logical ones of all files. `options` are those of `open`. Faults of a file name it in the member `file` of the error.
 */
export async function openCheckpoint(entries, options = {}) {
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  const names = [...byName.keys()].sort();
  const weights = names.filter((name) => ENDOR_WEIGHTS.test(name));
  const indices = names.filter((name) => ENDOR_INDEX.test(name));
  checkNeighbours(names);
  weights.forEach(denseName);
  for (const name of CONFIGS) if (byName.has(name)) await checkConfig(byName.get(name));

  const maps = new Map();
  for (const name of indices)
    maps.set(variantOf(ENDOR_INDEX, name), { name, map: await readIndex(byName.get(name), "K-1", false) });
  checkNaming(maps, byName, weights);
  await checkKeptIndices(names, byName, maps, weights);

  const files = [];
  for (const name of weights)
    files.push({ name, file: await within(name, () => open(byName.get(name).source, options)) });
  for (const { name, map } of maps.values()) {
    const named = new Set(map.map(({ value }) => value));
    checkMap(
      name,
      map,
      files.filter((one) => named.has(one.name)),
    );
  }
  const tensors = files.flatMap(({ name, file }) =>
    file.tensors.map((tensor) => ({ tensor, file, fileName: name })),
  );
  return { files, tensors };
}

const broken = (rule, message, file, tensor = null) =>
  Object.assign(new FormatError(rule, message, { tensor }), { file });

/** Adds to errors which file they are about. */
async function within(name, work) {
  try {
    return await work();
  } catch (error) {
    throw Object.assign(error, { file: error.file ?? name });
  }
}

/** No dense weights beside the Endor weights (K-5). */
function checkNeighbours(names) {
  for (const name of names) {
    const dense = WEIGHTS.test(name) && !ENDOR_WEIGHTS.test(name);
    const index = INDEX.test(name) && !ENDOR_INDEX.test(name) && !KEPT_INDEX.test(name);
    if (dense || index || PYTORCH.test(name))
      throw broken("K-5", `${quoted(name)} is of dense weights, beside Endor weights`, name);
  }
}

async function readText({ name, source }) {
  if (source.size > LONGEST_TEXT) throw new UnsupportedError(`${quoted(name)} has ${source.size} bytes`);
  return source.read(0, source.size);
}

/** A config is a JSON object, in the JSON of other software (K-8): Infinity and NaN are let pass, and J-2 to J-5 not asked for. */
async function checkConfig(entry) {
  const bytes = await readText(entry);
  let config = null;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    config = JSON.parse(
      text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?Infinity|NaN/gs, (token) => (token[0] === '"' ? token : "0")),
    );
  } catch (error) {
    if (error instanceof RangeError) throw new UnsupportedError(`${quoted(entry.name)} cannot be parsed`);
  }
  if (config === null || typeof config !== "object" || Array.isArray(config))
    throw broken("K-8", `${quoted(entry.name)} is not a JSON object`, entry.name);
}

/** The members of an index's `weight_map`, `{name, value}`, sorted by name (K-1); `rule` is K-10 for a dense index. */
async function readIndex(entry, rule, folders) {
  const { name } = entry;
  const bytes = await readText(entry);
  const fail = (_, message, position) => broken(rule, `${quoted(name)}, byte ${position}: ${message}`, name);
  const malformed = malformedUtf8(bytes);
  if (malformed >= 0) throw fail("", "not UTF-8", malformed);
  const map = parseJson(bytes, { weight_map: { "*": true } }, fail).get("weight_map");
  if (!(map instanceof Members)) throw broken(rule, `${quoted(name)} has no object weight_map`, name);
  for (const { name: tensor, value } of map.list)
    if (typeof value !== "string" || (folders ? value.split("/") : [value]).some((one) => NO_NAME.test(one)))
      throw broken(
        rule,
        `${typeof value === "string" ? quoted(value) : "a value of weight_map"} is not the name of a file in the directory`,
        name,
        tensor,
      );
  return map.list;
}

/** What indices name exists and is named as it should be; shards have an index, which names them (K-2). */
function checkNaming(maps, byName, weights) {
  for (const { name, map } of maps.values())
    for (const { name: tensor, value } of map)
      if (!byName.has(value) || !ENDOR_WEIGHTS.test(value))
        throw broken(
          "K-2",
          `${quoted(value)} ${byName.has(value) ? "is not named as Endor weights" : "does not exist"}`,
          name,
          tensor,
        );
  for (const name of weights) {
    if (!SHARD.test(name)) continue;
    const index = maps.get(variantOf(SHARD, name));
    if (!index) throw broken("K-2", `the shard ${quoted(name)} has no index`, name);
    index.named ??= new Set(index.map.map(({ value }) => value));
    if (!index.named.has(name)) throw broken("K-2", `the shard ${quoted(name)} is not in its index`, name);
  }
}

/** Dense indices that are kept name dense counterparts of the Endor weights that are there (K-10). */
async function checkKeptIndices(names, byName, maps, weights) {
  const dense = new Set(weights.map(denseName));
  for (const name of names) {
    if (!KEPT_INDEX.test(name) || !maps.has(variantOf(KEPT_INDEX, name))) continue;
    for (const { name: tensor, value } of await readIndex(byName.get(name), "K-10", true))
      if (!dense.has(value) && !byName.has(`${value}.dense`))
        throw broken("K-10", `${quoted(value)} is the dense name of no file`, name, tensor);
  }
}

/** The map has what the files have, each in its place (K-3), and parts are beside their tensor (K-4). */
function checkMap(name, map, files) {
  const physical = files.flatMap(({ name: fileName, file }) =>
    file.physical.map((one) => ({ name: one.name, fileName })),
  );
  physical.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  for (const { name: fileName, file } of files)
    for (const tensor of file.tensors) if (tensor.encoded) checkParts(tensor.name, fileName, physical);
  for (let i = 0; i < Math.max(map.length, physical.length); i += 1) {
    const [listed, there] = [map[i], physical[i]];
    if (listed?.name !== there?.name || listed.value !== there.fileName)
      throw broken(
        "K-3",
        `${quoted(name)} and the files differ`,
        name,
        (listed && there && listed.name > there.name ? there : (listed ?? there)).name,
      );
  }
}

function checkParts(tensor, fileName, physical) {
  const prefix = `${tensor}.endor.`;
  for (let i = lowerBound(physical, prefix); i < physical.length && physical[i].name.startsWith(prefix); i += 1)
    if (physical[i].fileName !== fileName)
      throw broken(
        "K-4",
        `${quoted(physical[i].name)} is in ${quoted(physical[i].fileName)}, and not beside its tensor`,
        physical[i].fileName,
        tensor,
      );
}
