// A reader written from docs/store-format.md alone, in JavaScript: node format_reader.mjs STORE KEY VIEW
//
// Prints, as JSON, every answer of the store as numbers, and the first numbers that KEY's VIEW is drawn by.
import { FileSystemStore } from "@zarrita/storage";
import * as zarr from "zarrita";

const [place, key, view] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(place));
const manifest = (await zarr.open(root, { kind: "group" })).attrs.distill;
const read = async (name) => {
  const array = await zarr.open(root.resolve(name), { kind: "array" });
  const { data, shape, stride } = await zarr.get(array);
  const inOrder = []; // zarrita leaves a transposed chunk as it is, and says how it lies
  for (let i = 0; i < shape[0]; i++)
    for (let j = 0; j < shape[1]; j++)
      for (let k = 0; k < shape[2]; k++)
        inOrder.push(Number(data[i * stride[0] + j * stride[1] + k * stride[2]]));
  return { shape, data: inOrder };
};
const { entries, prob_steps: Q } = manifest.encoding;
const sizes = manifest.hierarchy.classes_per_hierarchy;
const U = Q * Math.ceil(5000 / Q);
const unzigzag = (code) => (code >> 1) ^ -(code & 1);
const [index, prob, confidence, sqNorm] = await Promise.all(
  ["index", "prob", "confidence", "sq_norm"].map(read),
);
const [N, V, S] = prob.shape;
const K = sizes.length;
const answers = [];
for (let row = 0; row < N; row++) {
  for (let v = 0; v < V; v++) {
    const at = row * V + v;
    const valid = confidence.data[at * K] > 0;
    const answer = { valid, prob: [], confidence: [], sq_norm: [] };
    answer.index = index.data.slice(at * S, (at + 1) * S);
    answer.prob = prob.data.slice(at * S, (at + 1) * S).map((c) => c / Q);
    let start = 0;
    sizes.forEach((n, k) => {
      const kept = prob.data.slice(at * S + start, at * S + start + entries[k]);
      start += entries[k];
      const counted = Math.min(entries[k], Math.ceil(n / 20));
      const sum = kept.reduce((a, c) => a + c, 0);
      const p = (kept.slice(0, counted).reduce((a, c) => a + c, 0) * U) / Q;
      const u = Math.max(1, n - kept.filter((c) => c > 0).length);
      const r = Math.max(0, Q - sum);
      const squares = kept.reduce((a, c) => a + c * c, 0) * u + r * r;
      const q = Math.floor((squares * 1024) / (Q * Q * u));
      answer.confidence.push(valid ? (p + unzigzag(confidence.data[at * K + k] - 1)) / U : 0);
      answer.sq_norm.push(valid ? (q + unzigzag(sqNorm.data[at * K + k])) / 1024 : 0);
    });
    answers.push(answer);
  }
}

// How a view is drawn. BLAKE2b of Node gives 64 bytes only, so the caller says the id of the key.
const M = (1n << 64n) - 1n;
const [high, low] = key.split(",").map(BigInt);
function philox(key, counter) {
  let [k0, k1] = key;
  let c = [...counter];
  for (let round = 0; round < 10; round++) {
    const a = c[0] * 0xd2e7470ee14c6c93n;
    const b = c[2] * 0xca5a826395121157n;
    c = [(b >> 64n) ^ c[1] ^ k0, b & M, (a >> 64n) ^ c[3] ^ k1, a & M];
    k0 = (k0 + 0x9e3779b97f4a7c15n) & M;
    k1 = (k1 + 0xbb67ae8584caa73bn) & M;
  }
  return c;
}
const words = philox([0n, 0n], [1n, BigInt(view), high, low]);
const numbers = words.map((word) => Number(word >> 11n) * 2 ** -53);
console.log(JSON.stringify({ shape: prob.shape, answers, numbers }));
