// The connection to `worldmodel play`: the real environment beside the dream, other runs, and recording. A page without that
// server, or whose server has gone, works without it.

const RETRY_MS = 1500;

/** Numbers of the leaves of an observation, as the server sends them: lists, or bytes in base64. */
export function leavesOf(observation) {
  return Object.fromEntries(
    Object.entries(observation).map(([name, value]) => [
      name,
      Array.isArray(value) ? value.map(Number) : Uint8Array.from(atob(value.base64), (character) => character.charCodeAt(0)),
    ]),
  );
}

/** Actions as JSON: {input name: [numbers]}. */
export function plain(action) {
  return Object.fromEntries(Object.entries(action).map(([name, values]) => [name, Array.from(values, Number)]));
}

export class Live extends EventTarget {
  /** @param address of the websocket */
  constructor(address) {
    super();
    Object.assign(this, { address, socket: null, waiting: new Map(), closed: false });
    this.connect();
  }

  get connected() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Bytes that are not sent yet. */
  get backlog() {
    return this.socket?.bufferedAmount ?? 0;
  }

  connect() {
    this.socket = new WebSocket(this.address);
    this.socket.onopen = () => this.dispatchEvent(new Event("open"));
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onclose = () => {
      for (const { reject } of this.waiting.values()) reject(new Error("the connection was lost"));
      this.waiting.clear();
      this.dispatchEvent(new Event("lost"));
      if (!this.closed) setTimeout(() => this.connect(), RETRY_MS);
    };
  }

  close() {
    this.closed = true;
    this.socket.close();
  }

  /** Send a message; the answer to it is the next one of type `answer`, or an error about it. */
  ask(message, answer, seconds = 60) {
    if (!this.connected) return Promise.reject(new Error("worldmodel play is not connected"));
    this.waiting.get(answer)?.reject(new Error("another request took its place"));
    this.socket.send(JSON.stringify(message));
    return new Promise((resolve, reject) => {
      const own = { resolve, reject, about: message.type };
      this.waiting.set(answer, own);
      setTimeout(() => {
        if (this.waiting.get(answer) !== own) return;
        this.waiting.delete(answer);
        reject(new Error(`worldmodel play did not answer "${message.type}" within ${seconds} s`));
      }, 1000 * seconds);
    });
  }

  /** Send a message without waiting, or bytes. */
  tell(message) {
    if (this.connected) this.socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
  }

  receive(message) {
    for (const [answer, { resolve, reject, about }] of this.waiting) {
      if (message.type === answer || (message.type === "error" && message.about === about)) {
        this.waiting.delete(answer);
        message.type === "error" ? reject(new Error(message.text)) : resolve(message);
        return;
      }
    }
    this.dispatchEvent(Object.assign(new Event("message"), { message }));
  }
}
