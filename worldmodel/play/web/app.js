// The page: opens the world that the address names, and connects keys, buttons, canvases and the player.

import * as ort from "./vendor/onnxruntime-web/ort.wasm.min.mjs";
import { Controls } from "./controls.js";
import { addKeys } from "./keys.js";
import { Live } from "./live.js";
import { Player } from "./player.js";
import { Recorder } from "./recorder.js";
import { View } from "./view.js";
import { World } from "./world.js";

ort.env.wasm.numThreads = 1; // needs no headers of the server, and networks of this size gain nothing from more
ort.env.wasm.wasmPaths = new URL("./vendor/onnxruntime-web/", import.meta.url).href;

const ARROWS = { ArrowLeft: "\u2190", ArrowRight: "\u2192", ArrowUp: "\u2191", ArrowDown: "\u2193" };
const $ = (id) => document.getElementById(id);

/** Show one line of text; `error` stays until the next one. */
function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

async function fetched(address) {
  const response = await fetch(address, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${address}: expected a file, got HTTP ${response.status}; export the page again`);
  return response;
}

/** List the worlds to choose from; choosing one opens the page with it. */
function addChooser(worlds, chosen, live) {
  $("chooser").hidden = worlds.length < 2;
  for (const { id, title } of worlds) $("worlds").add(new Option(title, id, id === chosen.id, id === chosen.id));
  $("worlds").addEventListener("change", async () => {
    const id = $("worlds").value;
    try {
      if (!worlds.find((one) => one.id === id).ready) {
        say("Exporting this run for the page; that takes about half a minute.");
        await live.ask({ type: "open", world: id }, "opened", 600);
      }
      location.search = new URLSearchParams({ world: id });
    } catch (error) {
      $("worlds").value = chosen.id;
      say(error.message, true);
    }
  });
}

/** Make a slider for each latent number of an image. */
function addSliders(player) {
  const { sliders } = player.world.page;
  $("latents").hidden = !sliders.length;
  let wanted = null;
  const move = async () => {
    if (wanted === null) return;
    const z = wanted;
    wanted = null;
    await player.dream.moveTo(z);
    player.changed();
    await move();
  };
  const inputs = sliders.map(({ index, low, high }) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "range", min: low, max: high, step: (high - low) / 200 });
    input.setAttribute("aria-label", `z ${index}`);
    label.append(`${index}`, input);
    $("sliders").append(label);
    input.addEventListener("input", () => {
      const idle = wanted === null;
      wanted = Float32Array.from(wanted ?? player.state.z);
      wanted[index] = Number(input.value);
      if (idle) move();
    });
    return [index, input];
  });
  const follow = () => {
    if (!$("latents").open) return;
    for (const [index, input] of inputs) if (document.activeElement !== input) input.value = player.state.z[index];
  };
  player.addEventListener("change", follow);
  $("latents").addEventListener("toggle", follow);
}

/** Keep buttons and texts as the player is. */
function addButtons(player) {
  const commands = {
    pause: () => ((player.playing = !player.playing), player.changed("driver")),
    step: () => ((player.playing = false), player.changed("driver"), player.step()),
    back: () => ((player.playing = false), player.changed("driver"), player.back(10)),
    start: () => player.start(),
    driver: () => player.handOver(),
    "show-real": () => player.toggleReal(),
  };
  const guarded = (name) => () => Promise.resolve(commands[name]()).catch((error) => say(error.message, true));
  for (const name of Object.keys(commands)) $(name).addEventListener("click", guarded(name));
  const update = () => {
    $("pause").textContent = player.playing ? "Pause" : "Play";
    $("driver").textContent = player.driver === "agent" ? "Agent drives" : "You drive";
    $("driver").disabled = !player.canHandOver;
    $("driver").title = player.canHandOver ? "" : player.controls.usable ? "This world has no agent." : "Only the agent can act in this space.";
    $("show-real").setAttribute("aria-pressed", String(Boolean(player.real)));
    $("show-real").textContent = player.real ? "Hide reality" : "Show reality";
  };
  for (const name of ["driver", "real"]) player.addEventListener(name, update);
  update();
  player.controls.addButtons($("pad"));
  for (const id of ["action-keys-term", "action-keys"]) $(id).hidden = !player.controls.usable;
  $("action-keys").textContent = (player.controls.controls?.buttons ?? []).map(({ key, label }) => `${ARROWS[key] ?? key} ${label}`).join(", ");
  addEventListener("click", ({ detail, target }) => detail && target.closest("button")?.blur()); // so that keys go to the page again
  $("pad").addEventListener("pointerdown", () => player.driver === "agent" && player.handOver());
  addKeys(player, Object.fromEntries(Object.keys(commands).map((name) => [name, guarded(name)])), setTemperature);
  const setTo = (value) => {
    player.dream.temperature = Number(value);
    $("temperature").value = value;
    $("temperature-value").textContent = Number(value).toFixed(2);
  };
  function setTemperature(change) {
    setTo(Math.min(3, Math.max(0, Math.round(20 * (player.dream.temperature + change)) / 20)));
  }
  $("temperature").addEventListener("input", () => setTo($("temperature").value));
  setTo($("temperature").value);
}

/** Show the model card: data, likelihoods, licence, scores. */
function addAbout(card) {
  $("about").hidden = !card;
  if (!card) return;
  $("about-summary").textContent = card.summary;
  for (const [name, value] of Object.entries({ ...(card.facts ?? {}), licence: card.licence })) {
    const texts = [document.createElement("dt"), document.createElement("dd")];
    texts.forEach((element, index) => (element.textContent = [name, value][index]));
    $("about-facts").append(...texts);
  }
  $("about-scores").hidden = !card.scores;
  $("about-scores").textContent = card.scores;
}

/** What only `worldmodel play` offers. */
function addLive(player, live) {
  const { page } = player.world;
  live.addEventListener("open", () => {
    $("show-real").hidden = !(page.environment && player.world.has("encoder"));
    $("record").hidden = $("record-format").hidden = false;
    if ($("message").dataset.lost) say("Connected again.");
    delete $("message").dataset.lost;
  });
  live.addEventListener("lost", () => {
    $("message").dataset.lost = "yes";
    say("The connection to worldmodel play was lost. The dream goes on without it.", true);
    if (player.real) player.real = null;
    $("show-real").hidden = $("record").hidden = $("record-format").hidden = true;
    player.changed("real");
    player.changed();
  });
  live.addEventListener("message", ({ message }) => {
    if (message.type !== "error") return player.hear(message);
    say(message.text, true);
    if (["act", "back"].includes(message.about)) player.hideReal(); // it no longer follows the dream
  });
  const recorder = new Recorder(live, [$("dream"), $("real")]);
  player.addEventListener("change", () => recorder.add());
  $("record").addEventListener("click", async () => {
    try {
      if (recorder.recording) {
        say("Writing the recording.");
        const { address, frames } = await recorder.save();
        Object.assign(document.createElement("a"), { href: address, download: "" }).click();
        say(`Recorded ${frames} frames.`);
      } else {
        await recorder.begin($("record-format").value, player.fps);
        say("Recording.");
      }
    } catch (error) {
      say(error.message, true);
    }
    $("record").setAttribute("aria-pressed", String(recorder.recording));
    $("record").textContent = recorder.recording ? "Save" : "Record";
  });
}

async function main() {
  const list = await (await fetched("worlds.json")).json();
  const wanted = new URLSearchParams(location.search).get("world");
  const chosen = list.worlds.find(({ id }) => id === wanted) ?? list.worlds[0];
  const live = list.live ? new Live(new URL("ws", location.href.replace(/^http/, "ws").replace(/[?#].*/, "")).href) : null;
  addChooser(list.worlds, chosen, live);
  say(`Loading ${chosen.title}.`);
  const page = { ...(await (await fetched(`${chosen.path}page.json`)).json()), id: chosen.id };
  const world = await World.open(ort, page, async (file) => new Uint8Array(await (await fetched(chosen.path + file)).arrayBuffer()));
  const action = page.files.step.inputs.find(({ name }) => name === page.controls?.leaf);
  const player = new Player(world, new Controls(page.controls, action?.dtype), live);
  document.title = `${page.title}: worldmodel`;
  $("title").textContent = page.title;
  $("subtitle").textContent = page.subtitle;
  new View(player);
  addAbout(page.card);
  addSliders(player);
  addButtons(player);
  player.addEventListener("failed", ({ error }) => say(error.message, true));
  if (live) addLive(player, live);
  if (live?.connected) live.dispatchEvent(new Event("open"));
  for (const id of ["panel", "curves"]) $(id).hidden = false;
  await player.start();
  player.playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  player.changed("driver");
  say("");
  globalThis.player = player;
  player.run();
}

main().catch((error) => say(error.message, true));
