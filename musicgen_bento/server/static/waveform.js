// Waveform of a clip, drawn as bars. The part that has been played has the accent color.

const BAR_PIXELS = 2;
const GAP_PIXELS = 1;
const REDRAW_MS = 200;

/** Decodes a WAV and mixes it to one channel, the loudest sample of all channels. */
export async function decodeWav(wav) {
  const context = new OfflineAudioContext(1, 1, 32_000);
  const audio = await context.decodeAudioData(await wav.arrayBuffer());
  const mixed = audio.getChannelData(0).slice();
  for (let channel = 1; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((sample, index) => {
      mixed[index] = Math.abs(sample) > Math.abs(mixed[index]) ? sample : mixed[index];
    });
  }
  return mixed;
}

// The peak of each of `count` equal parts, scaled to a maximum of 1.
function computePeaks(samples, count) {
  const peaks = new Float32Array(count);
  for (let bar = 0; bar < count; bar += 1) {
    const end = Math.floor(((bar + 1) * samples.length) / count);
    for (let index = Math.floor((bar * samples.length) / count); index < end; index += 1) {
      peaks[bar] = Math.max(peaks[bar], Math.abs(samples[index]));
    }
  }
  const loudest = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => peak / loudest);
}

export class Waveform {
  constructor(canvas, samples) {
    this.canvas = canvas;
    this.samples = samples;
    this.played = 0;
    this.peaks = [];
    new ResizeObserver(() => this.measure()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  replace(samples) {
    clearTimeout(this.redrawTimer);
    this.samples = samples;
    this.played = 0;
    this.measure();
  }

  // Computes the bars for the canvas's size and draws them.
  measure() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width) return;
    this.scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * this.scale);
    this.canvas.height = Math.round(height * this.scale);
    this.peaks = computePeaks(this.samples, Math.max(1, Math.floor(width / (BAR_PIXELS + GAP_PIXELS))));
    this.draw();
  }

  /** Redraws soon after samples were added; not at once, because all samples are measured again. */
  scheduleRedraw() {
    this.redrawTimer ??= setTimeout(() => {
      this.redrawTimer = undefined;
      this.measure();
    }, REDRAW_MS);
  }

  /** @param {number} played 0 to 1 */
  setPlayed(played) {
    this.played = played;
    this.draw();
  }

  draw() {
    const { canvas, peaks, scale } = this;
    const style = getComputedStyle(canvas);
    const context = canvas.getContext("2d");
    const step = canvas.width / peaks.length;
    context.clearRect(0, 0, canvas.width, canvas.height);
    peaks.forEach((peak, bar) => {
      const height = Math.max(2 * scale, peak * canvas.height);
      context.fillStyle = style.getPropertyValue((bar + 1) / peaks.length <= this.played ? "--accent" : "--wave");
      context.beginPath();
      context.roundRect(bar * step, (canvas.height - height) / 2, BAR_PIXELS * scale, height, scale);
      context.fill();
    });
  }
}
