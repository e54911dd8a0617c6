// One dream, with every earlier step kept, so that going back restores the exact state: z, h, c, and the counter that the
// random numbers are made from.

import { STREAMS, normals, uniforms } from "./random.js";
import { band, sampleMany, sampleStep } from "./mixture.js";

const KEPT = 2000; // earlier states
const BAND_SAMPLES = 128;

export class Dream {
  /**
   * @param world a World
   * @param options withBand: compute the band of 90 % of the next observation at each step
   */
  constructor(world, { withBand = false } = {}) {
    Object.assign(this, { world, withBand, temperature: 1, states: [] });
  }

  /** The latest state; do not change it. */
  get state() {
    return this.states.at(-1);
  }

  /** Start at a real first frame, sampled with `seed`, or at a given z. */
  async start(seed, z = null) {
    const { mean, standard_deviation: deviation } = this.world.page.starts;
    const which = Math.floor(uniforms(seed, STREAMS.start, 0, 1)[0] * mean.length);
    const normal = normals(seed, STREAMS.start, 0, mean[which].length);
    const start = z ?? Float32Array.from(mean[which], (value, d) => value + deviation[which][d] * normal[d]);
    const state = { seed, t: 0, z: start, h: this.world.initial, c: this.world.initial, total: 0, ended: false };
    this.states = [{ ...state, reward: 0, termination: 0, observation: await this.world.decode(start) }];
    return this.state;
  }

  /** Advance by one step with an action {input name: numbers}; a dream that has ended stays as it is. */
  async step(action) {
    const before = this.state;
    if (before.ended) return before;
    const { world, temperature } = this;
    const drawn = await sampleStep(world, before, action, temperature);
    const termination = drawn.termination ? drawn.termination[0] : 0;
    const reward = drawn.reward ? drawn.reward[0] : 0;
    const state = {
      seed: before.seed,
      t: before.t + 1,
      z: drawn.next_z,
      h: drawn.next_h,
      c: drawn.next_c,
      action,
      reward,
      termination,
      total: before.total + reward,
      ended: uniforms(before.seed, STREAMS.termination, before.t, 1)[0] < termination,
      observation: await world.decode(drawn.next_z),
    };
    if (this.withBand) state.band = await this.predictedBand(before, action);
    if (this.state !== before) return this.state; // started anew or gone back meanwhile
    this.states.push(state);
    if (this.states.length > KEPT) this.states.shift();
    return state;
  }

  /** {leaf: [[low, high], ...]}: the 90 % band of the observation after `state` and an action. */
  async predictedBand(state, action) {
    const many = await sampleMany(this.world, state, action, this.temperature, BAND_SAMPLES);
    const decoded = await this.world.decode(many.next_z, BAND_SAMPLES);
    return Object.fromEntries(Object.entries(decoded).map(([leaf, values]) => [leaf, band(values, BAND_SAMPLES)]));
  }

  /** Restore the state of `count` steps ago, or the earliest that is kept. */
  back(count) {
    this.states.length = Math.max(1, this.states.length - count);
    return this.state;
  }

  /** Replace the latest z, from which the dream goes on. */
  async moveTo(z) {
    const before = this.state;
    const observation = await this.world.decode(z);
    if (this.state !== before) return this.state;
    this.states[this.states.length - 1] = { ...before, z, observation };
    return this.state;
  }
}
