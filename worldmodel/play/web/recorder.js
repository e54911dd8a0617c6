// Sends the pictures of the canvases to `worldmodel play`, which makes a film of them.

const MOST_WAITING = 16e6; // bytes; a frame that finds more waiting is left out
const WIDTH = 480; // of one picture in the film, for those that are larger

export class Recorder {
  /** @param live a Live connection; `canvases` are recorded side by side, those that are shown. */
  constructor(live, canvases) {
    Object.assign(this, { live, canvases, recording: false, scratch: document.createElement("canvas") });
  }

  async begin(format, fps) {
    const shown = this.canvases.filter((canvas) => canvas.width && canvas.offsetParent);
    if (!shown.length) throw new Error("recording: expected a picture of the dream, got curves only");
    const scale = Math.max(1, Math.floor(256 / shown[0].width)) * Math.min(1, WIDTH / shown[0].width);
    const [width, height] = [shown[0].width * scale, shown[0].height * scale].map((size) => 2 * Math.round(size / 2));
    this.shown = shown;
    Object.assign(this.scratch, { width: width * shown.length, height });
    this.cell = width;
    await this.live.ask({ type: "record", format, fps: Math.round(fps), width: this.scratch.width, height }, "recording");
    this.recording = true;
    this.add();
  }

  /** Record the pictures as they are now. */
  add() {
    if (!this.recording || this.live.backlog > MOST_WAITING) return;
    const ctx = this.scratch.getContext("2d", { willReadFrequently: true });
    ctx.imageSmoothingEnabled = this.shown[0].width > 256;
    ctx.fillRect(0, 0, this.scratch.width, this.scratch.height);
    this.shown.forEach((canvas, i) => ctx.drawImage(canvas, i * this.cell, 0, this.cell, this.scratch.height));
    const { data } = ctx.getImageData(0, 0, this.scratch.width, this.scratch.height);
    const rgb = new Uint8Array((data.length / 4) * 3);
    for (let i = 0, j = 0; i < data.length; i += 4) {
      rgb[j++] = data[i];
      rgb[j++] = data[i + 1];
      rgb[j++] = data[i + 2];
    }
    this.live.tell(rgb.buffer);
  }

  /** End the recording; returns {address, frames}. */
  async save() {
    this.recording = false;
    return this.live.ask({ type: "save" }, "saved");
  }
}
