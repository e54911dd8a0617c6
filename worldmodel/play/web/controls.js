// Actions from keys, touch and the mouse. page.json says which key means what (`controls`): a number of a Discrete space, or
// values of single numbers of a Box.

import { typed } from "./world.js";

export class Controls {
  /** @param controls page.controls, or null if only the agent can act; `dtype` of the action input. */
  constructor(controls, dtype) {
    Object.assign(this, { controls, dtype, held: [], alternate: 0 });
  }

  get usable() {
    return this.controls !== null;
  }

  knows(key) {
    return this.usable && this.controls.buttons.some((button) => button.key === key);
  }

  press(key) {
    if (this.knows(key) && !this.held.includes(key)) this.held.push(key);
  }

  release(key) {
    this.held = this.held.filter((other) => other !== key);
  }

  releaseAll() {
    this.held = [];
  }

  /** The action of the keys that are held at step t: {input name: typed array}. */
  action(t) {
    const { kind, leaf, buttons, idle } = this.controls;
    const pressed = this.held.map((key) => buttons.find((button) => button.key === key));
    if (kind === "discrete") {
      const last = pressed.at(-1);
      const rest = Array.isArray(idle) ? idle[t % idle.length] : idle; // several are taken in turn: no force on average
      return { [leaf]: typed(this.dtype, [last ? last.choose : rest]) };
    }
    if (!idle.length) return {}; // a world without actions
    const values = [...idle];
    for (const button of pressed) for (const [index, value] of button.set) values[index] = value;
    return { [leaf]: typed(this.dtype, values) };
  }

  /** Make a button for each key; a button acts while it is held down. */
  addButtons(parent) {
    for (const { key, label } of this.controls?.buttons ?? []) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "action";
      button.textContent = label;
      button.dataset.key = key;
      button.setAttribute("aria-keyshortcuts", key);
      button.title = `${label} (key ${key})`;
      const hold = (event) => (event.preventDefault(), this.press(key));
      button.addEventListener("pointerdown", hold);
      for (const name of ["pointerup", "pointerleave", "pointercancel", "blur"]) button.addEventListener(name, () => this.release(key));
      button.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && this.press(key));
      button.addEventListener("keyup", (event) => [" ", "Enter"].includes(event.key) && this.release(key));
      button.addEventListener("contextmenu", (event) => event.preventDefault());
      parent.append(button);
    }
  }
}
