// A clip's shape, drawn as bars; what has been played is in the accent's colour.

const BAR = 2;
const GAP = 1;

// The samples of a WAV, mixed to one channel.
export async function decode(wav) {
  const context = new OfflineAudioContext(1, 1, 32_000);
  const audio = await context.decodeAudioData(await wav.arrayBuffer());
  const mixed = audio.getChannelData(0).slice();
  for (let channel = 1; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((sample, at) => {
      mixed[at] = Math.abs(sample) > Math.abs(mixed[at]) ? sample : mixed[at];
    });
  }
  return mixed;
}

// The loudest sample of each of `count` stretches, 0 to 1, the loudest of all at 1.
export function peaksOf(samples, count) {
  const peaks = new Float32Array(count);
  for (let bar = 0; bar < count; bar += 1) {
    const end = Math.floor(((bar + 1) * samples.length) / count);
    for (let at = Math.floor((bar * samples.length) / count); at < end; at += 1) {
      peaks[bar] = Math.max(peaks[bar], Math.abs(samples[at]));
    }
  }
  const loudest = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => peak / loudest);
}

export class Wave {
  constructor(canvas, samples) {
    this.canvas = canvas;
    this.samples = samples;
    this.played = 0;
    this.peaks = [];
    new ResizeObserver(() => this.measure()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  replace(samples) {
    clearTimeout(this.growing);
    this.samples = samples;
    this.played = 0;
    this.measure();
  }

  measure() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width) return;
    this.scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * this.scale);
    this.canvas.height = Math.round(height * this.scale);
    this.peaks = peaksOf(this.samples, Math.max(1, Math.floor(width / (BAR + GAP))));
    this.draw();
  }

  // There is more of it. Now and then is often enough: all of it is measured.
  grow() {
    this.growing ??= setTimeout(() => {
      this.growing = undefined;
      this.measure();
    }, 200);
  }

  // `played` is 0 to 1.
  show(played) {
    this.played = played;
    this.draw();
  }

  draw() {
    const { canvas, peaks, scale } = this;
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    const step = canvas.width / peaks.length;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    peaks.forEach((peak, bar) => {
      const height = Math.max(2 * scale, peak * canvas.height);
      pen.fillStyle = style.getPropertyValue((bar + 1) / peaks.length <= this.played ? "--accent" : "--wave");
      pen.beginPath();
      pen.roundRect(bar * step, (canvas.height - height) / 2, BAR * scale, height, scale);
      pen.fill();
    });
  }
}
