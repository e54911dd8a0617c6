// Classic control, drawn as Gymnasium does: same sizes, shapes and colours, from the observation.

const polygon = (ctx, points, colour) => {
  ctx.fillStyle = colour;
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.closePath();
  ctx.fill();
};

const disc = (ctx, x, y, radius, colour) => {
  ctx.fillStyle = colour;
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  ctx.fill();
};

const line = (ctx, points, colour = "#000") => {
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1;
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.stroke();
};

/** A rectangle from left, right, top and bottom, rotated by an angle and moved. */
const box = (l, r, t, b, angle, x, y) => {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [[l, b], [l, t], [r, t], [r, b]].map(([u, v]) => [u * cos - v * sin + x, u * sin + v * cos + y]);
};

function cartPole(ctx, [x, , angle]) {
  const scale = 600 / 4.8;
  const [cart, ground] = [x * scale + 300, 100];
  polygon(ctx, box(-25, 25, 15, -15, 0, cart, ground), "#000");
  polygon(ctx, box(-5, 5, scale - 5, -5, -angle, cart, ground + 7.5), "rgb(202, 152, 101)");
  disc(ctx, cart, ground + 7.5, 5, "rgb(129, 132, 203)");
  line(ctx, [[0, ground], [600, ground]]);
}

function pendulum(ctx, [cos, sin], action) {
  const scale = 500 / 4.4;
  const angle = Math.atan2(sin, cos) + Math.PI / 2;
  const width = 0.2 * scale;
  const colour = "rgb(204, 77, 77)";
  polygon(ctx, box(0, scale, width / 2, -width / 2, angle, 250, 250), colour);
  disc(ctx, 250, 250, width / 2, colour);
  disc(ctx, 250 + scale * Math.cos(angle), 250 + scale * Math.sin(angle), width / 2, colour);
  const torque = action ? Math.max(-2, Math.min(2, Number(action[0]))) : 0;
  if (Math.abs(torque) > 0.02) { // a ring from the top, whose arrow shows the direction: counter-clockwise if positive
    const radius = 0.23 * scale * Math.abs(torque);
    ctx.strokeStyle = "#000";
    ctx.lineWidth = 1 + Math.abs(torque);
    ctx.beginPath();
    ctx.arc(250, 250, radius, Math.PI / 2, torque > 0 ? 2 * Math.PI : Math.PI, torque < 0);
    ctx.stroke();
    const [x, size] = [250 + Math.sign(torque) * radius, 2 + radius / 6];
    polygon(ctx, [[x - size, 250], [x + size, 250], [x, 250 + 2 * size]], "#000");
  }
  disc(ctx, 250, 250, 0.05 * scale, "#000");
}

const height = (x) => 0.45 * Math.sin(3 * x) + 0.55;

function mountainCar(ctx, [position], goal) {
  const scale = 600 / (0.6 + 1.2); // as Gymnasium rounds it
  const at = (x) => (x + 1.2) * scale;
  line(ctx, Array.from({ length: 100 }, (_, i) => -1.2 + (1.8 * i) / 99).map((x) => [at(x), height(x) * scale]));
  const [x, y, slope] = [at(position), 10 + height(position) * scale, Math.cos(3 * position)];
  polygon(ctx, box(-20, 20, 20, 0, slope, x, y), "#000");
  for (const side of [10, -10]) disc(ctx, x + side * Math.cos(slope), y + side * Math.sin(slope), 8, "rgb(128, 128, 128)");
  const [flag, foot] = [Math.floor(at(goal)), Math.floor(height(goal) * scale)];
  line(ctx, [[flag, foot], [flag, foot + 50]]);
  polygon(ctx, [[flag, foot + 50], [flag, foot + 40], [flag + 25, foot + 45]], "rgb(204, 204, 0)");
}

function acrobot(ctx, [cos1, sin1, cos2, sin2]) {
  const scale = 500 / 4.4;
  const [first, second] = [Math.atan2(sin1, cos1), Math.atan2(sin2, cos2)];
  const goal = Math.floor(250 + scale);
  line(ctx, [[0, goal], [500, goal]]);
  const joints = [[250, 250], [250 + Math.sin(first) * scale, 250 - Math.cos(first) * scale]];
  [first - Math.PI / 2, first + second - Math.PI / 2].forEach((angle, i) => {
    polygon(ctx, box(0, scale, 0.1 * scale, -0.1 * scale, angle, ...joints[i]), "rgb(0, 204, 204)");
    disc(ctx, ...joints[i], 0.1 * scale, "rgb(204, 204, 0)");
  });
}

export const CLASSIC = {
  CartPole: { size: [600, 400], draw: cartPole },
  Pendulum: { size: [500, 500], draw: pendulum },
  MountainCar: { size: [600, 400], draw: (ctx, seen) => mountainCar(ctx, seen, 0.5) },
  MountainCarContinuous: { size: [600, 400], draw: (ctx, seen) => mountainCar(ctx, seen, 0.45) },
  Acrobot: { size: [500, 500], draw: acrobot },
};

/** Draw an observation (numbers) on a canvas; `action` is the latest one. */
export function drawClassic(canvas, name, seen, action) {
  const { size: [width, tall], draw } = CLASSIC[name];
  if (canvas.width !== width || canvas.height !== tall) Object.assign(canvas, { width, height: tall });
  const ctx = canvas.getContext("2d", { willReadFrequently: true });
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.fillStyle = "#fff";
  ctx.fillRect(0, 0, width, tall);
  ctx.setTransform(1, 0, 0, -1, 0.5, tall - 0.5); // Gymnasium's y axis points up, and its pixels have whole coordinates
  draw(ctx, Array.from(seen, Number), action);
  ctx.setTransform(1, 0, 0, 1, 0, 0);
}
