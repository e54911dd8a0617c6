// The keyboard. Keys of the page act anywhere but in a slider, a list or a button that uses the same key itself.

const COMMANDS = { " ": "pause", ".": "step", b: "back", n: "start", a: "driver", r: "show-real" };
const OWN = { BUTTON: [" ", "Enter"], SUMMARY: [" ", "Enter"] };

/** Whether the element that has the focus uses a key itself. */
function takesKey(element, key) {
  if (["INPUT", "SELECT", "TEXTAREA"].includes(element.tagName)) return key.startsWith("Arrow") || key === " " || key.length > 1 || element.tagName !== "INPUT";
  return OWN[element.tagName]?.includes(key) ?? false;
}

/**
 * @param player a Player
 * @param commands functions by the id of their button
 * @param changeTemperature adds a number to the temperature
 */
export function addKeys(player, commands, changeTemperature) {
  const mark = () => {
    for (const button of document.querySelectorAll("button.action")) button.classList.toggle("held", player.controls.held.includes(button.dataset.key));
  };
  addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || takesKey(event.target, event.key)) return;
    if (player.controls.knows(key)) {
      event.preventDefault();
      if (player.driver === "agent") player.handOver();
      player.controls.press(key);
      mark();
    } else if (!event.repeat || key === "." || key === "b") {
      if (key === "+" || key === "=") changeTemperature(0.1);
      else if (key === "-") changeTemperature(-0.1);
      else if (!(key in COMMANDS) || document.getElementById(COMMANDS[key]).hidden) return;
      else commands[COMMANDS[key]]();
      event.preventDefault();
    }
  });
  addEventListener("keyup", (event) => {
    player.controls.release(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    mark();
  });
  addEventListener("blur", () => (player.controls.releaseAll(), mark()));
}
