// Draws the state of a player: the picture or the curves of observations, the real environment, reward and termination.

import { drawClassic } from "./classic.js";
import { colours, drawCurves, drawImage } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const number = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));

export class View {
  constructor(player) {
    Object.assign(this, { player, page: player.world.page });
    const { view } = this.page;
    $("stage").hidden = view.kind === "numbers";
    $("status").hidden = view.kind !== "numbers";
    $("stage").classList.toggle("pixels", view.kind === "image");
    this.charts = view.numbers.map(({ name }) => this.addChart(name));
    $("numbers").hidden = !this.charts.length;
    for (const name of ["change", "real"]) player.addEventListener(name, () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    addEventListener("resize", () => this.draw());
  }

  addChart(name) {
    const figure = document.createElement("figure");
    const canvas = Object.assign(document.createElement("canvas"), { role: "img" });
    const caption = document.createElement("figcaption");
    const [text, value] = [document.createElement("span"), document.createElement("output")];
    text.textContent = name;
    canvas.setAttribute("aria-label", name);
    caption.append(text, value);
    figure.append(canvas, caption);
    $("numbers").append(figure);
    return { canvas, value, name };
  }

  draw() {
    const { player, page } = this;
    const { state } = player;
    if (!state) return;
    const real = player.realState;
    const alone = !player.real;
    $("stage").classList.toggle("alone", alone);
    $("real-figure").hidden = alone || page.view.kind === "numbers";
    this.picture($("dream"), state.observation, state.action);
    if (real && !alone) this.picture($("real"), real.observation, state.action);
    $("dream-figure").classList.toggle("ended", state.ended);
    $("real-figure").classList.toggle("ended", Boolean(real?.ended));
    const rate = player.playing && player.stepsPerSecond ? `, ${Math.round(player.stepsPerSecond)} per second` : "";
    $("dream-status").textContent = `step ${state.t}${state.ended ? ", terminated" : rate}, return ${number(state.total)}`;
    if (real) {
      const late = player.behind > 1 ? `, ${player.behind} steps behind` : "";
      $("real-status").textContent = `${real.ended ? "ended, " : ""}return ${number(real.total)}${late}`;
    }
    const dashed = real ? `. Real environment (dashed): ${$("real-status").textContent}` : "";
    $("status").textContent = `Dream: ${$("dream-status").textContent}${dashed}`;
    this.curves(state);
  }

  picture(canvas, observation, action) {
    const { view } = this.page;
    if (view.kind === "classic") drawClassic(canvas, view.name, observation[view.leaf], Object.values(action ?? {})[0]);
    if (view.kind === "image") drawImage(canvas, view.image, observation[view.image.leaf]);
  }

  curves(state) {
    const { states } = this.player.dream;
    const colour = colours(document.documentElement);
    const shared = { bandColour: colour("band"), axisColour: colour("line") };
    const latest = states.slice(-200);
    const main = colour("accent");
    drawCurves($("reward"), [{ values: latest.map((one) => (one.t ? one.reward : NaN)), colour: main }], shared);
    const warm = colour("warm");
    drawCurves($("termination"), [{ values: latest.map((one) => (one.t ? one.termination : NaN)), colour: warm }], { ...shared, low: 0, high: 1 });
    $("reward-value").textContent = number(state.reward);
    $("termination-value").textContent = state.termination.toFixed(3);
    this.page.view.numbers.forEach(({ leaf, index }, i) => {
      const { canvas, value, name } = this.charts[i];
      const read = (observation) => (observation ? Number(observation[leaf][index]) : NaN);
      const curves = [{ values: latest.map((one) => read(one.observation)), colour: main }];
      if (this.player.real) curves.unshift({ values: latest.map((one) => read(one.real?.observation)), colour: warm, dashed: true });
      const bands = latest.map((one) => one.band?.[leaf][index]);
      drawCurves(canvas, curves, { ...shared, bands });
      value.textContent = number(read(state.observation));
      canvas.setAttribute("aria-label", `${name}: ${value.textContent}`);
    });
  }
}
