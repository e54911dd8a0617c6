// Random numbers as a pure function of (seed, stream, step): Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A counter instead of a hidden state makes "ten steps back" exact: step t has the same numbers again.

export const STREAMS = { start: 0, step: 1, termination: 2, band: 3, action: 4 };

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** Upper 32 bits of the product of two unsigned 32-bit integers. */
function high(a, b) {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const low = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + Math.floor(middle / 65536) + Math.floor(low / 65536)) >>> 0;
}

/** Philox 4x32-10: write the four words of a counter (four words) and a key (two words) to `out` from `place` on. */
export function philox(counter, key, out = new Uint32Array(4), place = 0) {
  let [c0, c1, c2, c3, k0, k1] = [counter[0], counter[1], counter[2], counter[3], key[0], key[1]];
  for (let round = 0; round < 10; round++) {
    const h0 = high(M0, c0);
    const h1 = high(M1, c2);
    const l0 = Math.imul(M0, c0);
    const l1 = Math.imul(M1, c2);
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1 >>> 0;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0 >>> 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[place] = c0;
  out[place + 1] = c1;
  out[place + 2] = c2;
  out[place + 3] = c3;
  return out;
}

/** `count` random 32-bit words of step `t` of a stream. */
function words(seed, stream, t, count) {
  const found = new Uint32Array(4 * Math.ceil(count / 4));
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
  const counter = [0, t >>> 0, stream, 0];
  for (let place = 0; place < count; place += 4, counter[0]++) philox(counter, key, found, place);
  return found.subarray(0, count);
}

/** `count` uniform numbers in [0, 1), multiples of 2^-24, which float32 represents exactly. */
export function uniforms(seed, stream, t, count) {
  return Float32Array.from(words(seed, 2 * stream, t, count), (word) => (word >>> 8) / 2 ** 24);
}

/** `count` standard normal numbers, by Box and Muller's method in double precision. */
export function normals(seed, stream, t, count) {
  const word = words(seed, 2 * stream + 1, t, 2 * Math.ceil(count / 2));
  const found = new Float32Array(word.length);
  for (let i = 0; i < word.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((word[i] + 0.5) / 2 ** 32));
    const angle = 2 * Math.PI * ((word[i + 1] + 0.5) / 2 ** 32);
    found[i] = radius * Math.cos(angle);
    found[i + 1] = radius * Math.sin(angle);
  }
  return found.subarray(0, count);
}

/** A seed below 2^48 that no earlier visit had. */
export function freshSeed() {
  const word = crypto.getRandomValues(new Uint32Array(2));
  return word[0] + (word[1] >>> 16) * 2 ** 32;
}
