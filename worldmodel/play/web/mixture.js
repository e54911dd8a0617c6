// Samples of what M predicts: the random numbers of every kind of head, at a temperature, and bands of many samples.
//
// step.onnx takes uniform and normal numbers and the temperature, and does what `sample` does in Python: the log-weights of each
// mixture are divided by the temperature and normalised again, the noise is multiplied by its square root, and choices and bits
// are drawn from p^(1 / temperature). So the temperature is exact for every kind of head, and a new one acts at the next step.

import { STREAMS, normals, uniforms } from "./random.js";

/** Random inputs of `count` samples of step t. */
export function noise(sizes, { seed, stream, t, count }) {
  return {
    uniform: uniforms(seed, stream, t, count * sizes.num_uniforms),
    normal: normals(seed, stream, t, count * sizes.num_normals),
  };
}

/** One sample of the step from `state` = {seed, t, z, h, c} with an action {input name: numbers}. */
export async function sampleStep(world, state, action, temperature) {
  const random = noise(world.sizes, { seed: state.seed, stream: STREAMS.step, t: state.t, count: 1 });
  return world.step({ ...state, ...random, temperature: Float32Array.of(temperature), action, count: 1 });
}

/** `count` samples of the same step, which differ in their random numbers only; `first` numbers the call. */
export async function sampleMany(world, state, action, temperature, count, first = 0) {
  const { num_layers: layers, hidden_size: hidden } = world.sizes;
  const random = noise(world.sizes, { seed: state.seed, stream: STREAMS.band, t: state.t + first, count });
  return world.step({
    z: repeat(state.z, 1, count),
    h: repeat(state.h, layers, count),
    c: repeat(state.c, layers, count),
    ...random,
    temperature: new Float32Array(count).fill(temperature),
    action: Object.fromEntries(Object.entries(action).map(([name, values]) => [name, repeat(values, 1, count)])),
    count,
  });
}

/** Copy each of `groups` equal parts of an array `count` times in a row: (groups, n) to (groups, count, n). */
export function repeat(values, groups, count) {
  const size = values.length / groups;
  const found = new values.constructor(values.length * count);
  for (let group = 0; group < groups; group++) {
    const part = values.subarray(group * size, (group + 1) * size);
    for (let i = 0; i < count; i++) found.set(part, (group * count + i) * size);
  }
  return found;
}

/** Quantiles of each column of `rows` rows: [[low, high], ...]; the middle `share` of the samples lies between them. */
export function band(values, rows, share = 0.9) {
  const columns = values.length / rows;
  const found = [];
  for (let column = 0; column < columns; column++) {
    const sorted = Float64Array.from({ length: rows }, (_, row) => Number(values[row * columns + column])).sort();
    found.push([quantile(sorted, (1 - share) / 2), quantile(sorted, (1 + share) / 2)]);
  }
  return found;
}

/** A quantile of sorted numbers, with linear interpolation. */
function quantile(sorted, p) {
  const place = p * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}
