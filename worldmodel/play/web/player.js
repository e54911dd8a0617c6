// Plays a dream: who acts, when the next step is due, and the real environment that follows with the same actions.

import { Dream } from "./dream.js";
import { freshSeed } from "./random.js";
import { leavesOf, plain } from "./live.js";

const PAUSE_AT_END = 1200; // ms between the end of a dream and the next one
const MOST_BEHIND = 8; // steps that the real environment may be behind

export class Player extends EventTarget {
  /**
   * @param world a World
   * @param controls Controls
   * @param live a Live connection, or null
   */
  constructor(world, controls, live) {
    super();
    this.dream = new Dream(world, { withBand: world.page.view.kind === "numbers" });
    Object.assign(this, { world, controls, live, playing: false, busy: false, starting: null, real: null, stopped: false });
    this.fps = world.page.fps;
    this.driver = world.has("controller") ? "agent" : "human";
    this.stamps = [];
  }

  changed(name = "change") {
    this.dispatchEvent(new Event(name));
  }

  get state() {
    return this.dream.state;
  }

  get canHandOver() {
    return this.world.has("controller") && this.controls.usable;
  }

  /** Give control to the agent, or take it back. */
  handOver() {
    if (this.canHandOver) this.driver = this.driver === "agent" ? "human" : "agent";
    this.changed("driver");
  }

  /** New start; with the real environment from its first observation. A call during another one joins it. */
  start(seed = freshSeed()) {
    this.starting ??= this.startNow(seed).finally(() => (this.starting = null));
    return this.starting;
  }

  async startNow(seed) {
    this.endedAt = null;
    let first = null;
    if (this.real) {
      try {
        const { episode, observation } = await this.live.ask({ type: "start", world: this.world.page.id, seed: seed % 2 ** 31 }, "started");
        first = leavesOf(observation);
        this.real = { episode, answered: 0, ended: false };
      } catch (error) {
        this.real = null;
        this.failed(error);
      }
    }
    await this.dream.start(seed, first && (await this.world.encode(first)));
    if (first) this.state.real = { observation: first, reward: 0, total: 0, ended: false };
    this.changed();
  }

  failed(error) {
    this.dispatchEvent(Object.assign(new Event("failed"), { error }));
  }

  /** Show the real environment beside the dream, or stop it; both start anew. */
  async toggleReal() {
    if (this.real) this.live?.tell({ type: "stop" });
    this.real = this.real ? null : {};
    await this.start();
    this.changed("real");
  }

  /** Stop the real environment; the dream goes on. */
  hideReal() {
    if (this.real) this.live?.tell({ type: "stop" });
    this.real = null;
    this.changed("real");
    this.changed();
  }

  /** The next action, of the one who drives. */
  async action() {
    if (this.driver === "agent") return this.world.act(this.state);
    return this.controls.action(this.state.t);
  }

  /** One step; nothing while another one is under way. */
  async step() {
    if (this.busy || this.starting || !this.state || this.state.ended) return;
    this.busy = true;
    const episode = this.real?.episode; // a start during this step begins another one
    try {
      const before = this.state;
      const action = await this.action();
      const state = await this.dream.step(action);
      if (state.t !== before.t + 1) return;
      if (episode !== undefined && !this.real?.ended && this.live.connected) {
        this.live.tell({ type: "act", episode, t: state.t, action: plain(action) });
      }
      this.stamps.push(performance.now());
      if (this.stamps.length > 60) this.stamps.shift();
    } finally {
      this.busy = false;
    }
    if (this.state.ended) this.endedAt = performance.now();
    this.changed();
  }

  /** Steps per second, over the latest second. */
  get stepsPerSecond() {
    const now = performance.now();
    const recent = this.stamps.filter((stamp) => now - stamp < 1000);
    return recent.length < 2 ? 0 : ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]);
  }

  /** Restore the exact state of `count` steps ago, of the real environment too. */
  back(count) {
    this.endedAt = null;
    this.dream.back(count);
    if (this.real?.episode !== undefined) {
      const { t, real } = this.state;
      Object.assign(this.real, { answered: t, ended: real?.ended ?? false });
      this.live.tell({ type: "back", episode: this.real.episode, t });
    }
    this.changed();
  }

  /** Take a step of the real environment that the server has answered with. */
  hear(message) {
    if (message.type !== "real" || message.episode !== this.real?.episode) return;
    const { t, observation, reward, total, ended } = message;
    const state = this.dream.states.find((one) => one.t === t);
    if (!state) return;
    state.real = { observation: leavesOf(observation), reward, total, ended };
    this.real.answered = t;
    this.real.ended = ended;
    this.changed();
  }

  /** Steps that the real environment is behind. */
  get behind() {
    return this.real && !this.real.ended && this.live?.connected ? this.state.t - (this.real.answered ?? 0) : 0;
  }

  /** The latest step of the real environment. */
  get realState() {
    return this.real ? this.dream.states.findLast((state) => state.real)?.real : null;
  }

  /** Run until `stop`. */
  async run() {
    while (!this.stopped) {
      const began = performance.now();
      if (this.playing) {
        if (this.state.ended) {
          if (this.endedAt !== null && began - this.endedAt > PAUSE_AT_END) await this.start();
        } else if (this.behind < MOST_BEHIND) {
          try {
            await this.step();
          } catch (error) {
            this.playing = false;
            this.failed(error);
          }
        }
      }
      const left = 1000 / this.fps - (performance.now() - began);
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, left)));
    }
  }

  stop() {
    this.stopped = true;
  }
}
