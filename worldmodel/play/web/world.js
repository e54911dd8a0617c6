// An exported world: its description (page.json) and its networks, run by onnxruntime-web on one thread.

const FORMAT = "worldmodel.page";
const VERSION = 1;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int16: Int16Array, int8: Int8Array,
  uint64: BigUint64Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array, bool: Uint8Array,
};
export const NETWORKS = ["step", "decoder", "controller", "encoder"];

/** Numbers as the typed array of a dtype. */
export function typed(dtype, numbers) {
  const kind = ARRAYS[dtype];
  if (!kind) throw new Error(`dtype: expected one of ${Object.keys(ARRAYS).join(", ")}, got ${dtype}`);
  const big = kind === BigInt64Array || kind === BigUint64Array;
  return kind.from(numbers, big ? (x) => BigInt(Math.round(Number(x))) : Number);
}

/** Raise unless a description is one that this page can run. */
export function check(page) {
  if (page?.format !== FORMAT) throw new Error(`page.json: expected format ${FORMAT}, got ${page?.format}; export the world again`);
  if (page.version !== VERSION) {
    throw new Error(`page.json: expected version ${VERSION}, got ${page.version}; export the world again with this version`);
  }
}

export class World {
  /**
   * @param ort onnxruntime-web
   * @param page the content of page.json
   * @param read returns the bytes of a file by its name
   */
  static async open(ort, page, read) {
    check(page);
    const sessions = {};
    for (const name of NETWORKS.filter((name) => name in page.files)) {
      const { file, sha256 } = page.files[name];
      const bytes = await read(file);
      if (globalThis.crypto?.subtle) {
        const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
        const hex = Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
        if (hex !== sha256) throw new Error(`${file}: expected the file that was exported, got a damaged or changed one; export again`);
      }
      sessions[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    }
    return new World(ort, page, sessions);
  }

  constructor(ort, page, sessions) {
    Object.assign(this, { ort, page, sessions, sizes: page });
    this.queue = Promise.resolve();
    this.initial = new Float32Array(page.num_layers * page.hidden_size);
  }

  has(name) {
    return name in this.sessions;
  }

  /** Run a network on `count` rows, one call after the other; returns {output name: typed array}. */
  run(name, given, count) {
    const call = this.queue.then(async () => {
      const feeds = {};
      for (const { name: input, dtype, shape } of this.page.files[name].inputs) {
        const sizes = shape.map((size) => (typeof size === "number" ? size : count));
        feeds[input] = new this.ort.Tensor(dtype, given[input], sizes);
      }
      const results = await this.sessions[name].run(feeds);
      return Object.fromEntries(Object.entries(results).map(([output, tensor]) => [output, tensor.data]));
    });
    this.queue = call.catch(() => {});
    return call;
  }

  /** Advance `count` rows: z (D), h and c (layers, H), uniform, normal, temperature and action, each for every row. */
  async step({ z, h, c, uniform, normal, temperature, action, count }) {
    return this.run("step", { z, h, c, uniform, normal, temperature, ...action }, count);
  }

  /** Decode z to the leaves of observations. */
  async decode(z, count = 1) {
    return this.run("decoder", { z }, count);
  }

  /** The action of the exported controller: {input name of step: numbers}. */
  async act(state) {
    return this.run("controller", state, 1);
  }

  /** z of an observation {leaf: numbers}: the mean of V's posterior, or a sample with normal numbers. */
  async encode(leaves, normal) {
    const given = { normal: normal ?? new Float32Array(this.page.latent_size) };
    for (const { name, dtype } of this.page.files.encoder.inputs) {
      if (name !== "normal") given[name] = typed(dtype, leaves[name]);
    }
    return (await this.run("encoder", given, 1)).z;
  }
}
