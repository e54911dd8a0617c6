// Images on a canvas, and curves of numbers.

/** Draw the pixels of an image leaf: uint8 with its channels last, first or absent. */
export function drawImage(canvas, image, pixels) {
  const { height, width, channels, channels_first: first } = image;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const ctx = canvas.getContext("2d", { willReadFrequently: true });
  const data = ctx.createImageData(width, height);
  const area = width * height;
  for (let i = 0; i < area; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const own = Math.min(channel, channels - 1);
      data.data[4 * i + channel] = first ? pixels[own * area + i] : pixels[i * channels + own];
    }
    data.data[4 * i + 3] = 255;
  }
  ctx.putImageData(data, 0, 0);
}

/** Colours of the page, which follow the light or dark mode. */
export function colours(element) {
  const style = getComputedStyle(element);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

/** Make a canvas as fine as its screen; returns the context and the size in CSS pixels. */
function prepare(canvas) {
  const [width, height] = [canvas.clientWidth || 300, canvas.clientHeight || 80];
  const ratio = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return [ctx, width, height];
}

/**
 * Draw the latest `length` points of curves.
 * @param curves [{values, colour, dashed}], values without a number have gaps
 * @param options low, high: fixed bounds; bands: [[low, high]] for each point; length: points across
 */
export function drawCurves(canvas, curves, { low, high, bands = [], bandColour, axisColour, length = 200 } = {}) {
  const [ctx, width, height] = prepare(canvas);
  const tail = (values) => values.slice(-length);
  const all = [...curves.flatMap(({ values }) => tail(values)), ...tail(bands).flat()].filter(Number.isFinite);
  let [bottom, top] = [low ?? Math.min(...all), high ?? Math.max(...all)];
  if (!(top > bottom)) [bottom, top] = Number.isFinite(top) ? [top - 1, top + 1] : [0, 1];
  const [x, y] = [
    (i) => 2 + (i * (width - 4)) / (length - 1),
    (value) => height - 4 - ((value - bottom) / (top - bottom)) * (height - 8),
  ];
  if (bottom <= 0 && top >= 0) {
    ctx.strokeStyle = axisColour;
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(0, y(0));
    ctx.lineTo(width, y(0));
    ctx.stroke();
  }
  const spans = tail(bands);
  ctx.fillStyle = bandColour;
  ctx.beginPath();
  spans.forEach((span, i) => span && (i && spans[i - 1] ? ctx.lineTo(x(i), y(span[1])) : ctx.moveTo(x(i), y(span[1]))));
  for (let i = spans.length - 1; i >= 0; i--) if (spans[i]) ctx.lineTo(x(i), y(spans[i][0]));
  ctx.fill();
  for (const { values, colour, dashed } of curves) {
    ctx.strokeStyle = colour;
    ctx.lineWidth = 1.75;
    ctx.lineJoin = "round";
    ctx.setLineDash(dashed ? [4, 3] : []);
    ctx.beginPath();
    let pen = false;
    tail(values).forEach((value, i) => {
      if (Number.isFinite(value)) pen ? ctx.lineTo(x(i), y(value)) : ctx.moveTo(x(i), y(value));
      pen = Number.isFinite(value);
    });
    ctx.stroke();
  }
  ctx.setLineDash([]);
  return [bottom, top];
}
