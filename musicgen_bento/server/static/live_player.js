// A clip that is played while it is made. Its pieces are laid end to end on the clock of the sound card.

import { listen } from "./api.js";

const HEADER = 44; // bytes before the samples
const AHEAD = 0.4; // seconds to have before it begins, so that a late piece is not heard
const RATE = 32_000; // of every MusicGen; at another rate the seams would be heard
const CAREFUL = 0.8; // of the speed so far: it may not last

export class Live {
  // `hears`: grown() when there is more to draw, turned() when it begins, waits, pauses, ends or fails;
  // speed(), seconds of music a second, undefined while nobody knows.
  constructor(id, hears) {
    this.id = id;
    this.hears = hears;
    this.stop = new AbortController();
    this.state = "waiting"; // playing, paused, over, failed
    this.made = 0; // seconds that are here
    this.laid = 0; // seconds that are given to the sound card
    this.began = 0; // on its clock, when second 0 is, or would have been, heard
    this.pieces = [];
    this.context = new AudioContext({ sampleRate: RATE }); // now: a browser lets a page sound after a click, no later
  }

  // Reads all of it. Never rejects.
  async run() {
    try {
      const { headers, body } = await listen(this.id, this.stop.signal);
      this.rate = Number(headers.get("X-Audio-Sample-Rate"));
      this.channels = Number(headers.get("X-Audio-Channels"));
      this.length = Number(headers.get("X-Audio-Duration"));
      if (this.rate !== RATE) {
        this.context.close();
        this.context = new AudioContext({ sampleRate: this.rate });
      }
      this.samples = new Float32Array(Math.round(this.length * this.rate)); // of the first channel, to be drawn
      let rest = new Uint8Array(0);
      let skip = HEADER;
      for (const reader = body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        const frame = 2 * this.channels;
        const bytes = new Uint8Array(rest.length + value.length);
        bytes.set(rest);
        bytes.set(value, rest.length);
        const whole = skip + Math.floor((bytes.length - skip) / frame) * frame;
        if (whole <= skip) {
          rest = bytes;
          continue;
        }
        this.take(new DataView(bytes.buffer, skip, whole - skip));
        rest = bytes.slice(whole);
        skip = 0;
      }
      this.complete = true;
      this.lay();
    } catch (error) {
      if (!this.stop.signal.aborted) this.turn("failed");
      this.close();
    }
  }

  take(view) {
    const frames = view.byteLength / (2 * this.channels);
    const piece = this.context.createBuffer(this.channels, frames, this.rate);
    for (let channel = 0; channel < this.channels; channel += 1) {
      const data = piece.getChannelData(channel);
      for (let at = 0; at < frames; at += 1) data[at] = view.getInt16(2 * (at * this.channels + channel), true) / 32768;
    }
    this.samples.set(piece.getChannelData(0), Math.round(this.made * this.rate));
    this.made += frames / this.rate;
    this.pieces.push(piece);
    this.lay();
    this.hears.grown();
  }

  // Seconds of making that are still to be waited for, so that it need not stop again.
  get wait() {
    if (this.complete) return 0;
    const speed = this.hears.speed();
    if (!speed || this.made - this.laid < AHEAD) return Infinity;
    const left = (this.length - this.made) / (CAREFUL * speed); // until all of it is made
    return Math.max(0, left - (this.length - this.laid));
  }

  lay() {
    const now = this.context.currentTime;
    if (this.began + this.laid < now && this.pieces.length) { // it has run dry
      if (this.state === "paused") return;
      if (this.state === "playing") this.turn("waiting");
    }
    if (this.state === "waiting") {
      if (this.wait > 0) return;
      this.began = Math.ceil((now + 0.05) * this.rate) / this.rate - this.laid; // on a sample: no seam is heard
      this.turn("playing");
    }
    if (this.state !== "playing" && this.state !== "paused") return;
    for (const piece of this.pieces.splice(0)) {
      const source = this.context.createBufferSource();
      source.buffer = piece;
      source.connect(this.context.destination);
      source.start(this.began + this.laid);
      this.laid += piece.duration;
      this.last = source;
    }
    if (!this.complete) return;
    if (this.began + this.laid < now) this.close("over");
    else this.last.onended = () => this.close("over");
  }

  get position() {
    if (this.state === "over") return this.length;
    return Math.min(this.laid, Math.max(0, this.context.currentTime - this.began)) || 0;
  }

  pause() {
    if (this.state !== "playing") return;
    this.context.suspend();
    this.turn("paused");
  }

  play() {
    if (this.state !== "paused") return;
    this.context.resume();
    this.turn("playing");
    this.lay();
  }

  turn(state) {
    this.state = state;
    this.hears.turned();
  }

  close(state) {
    this.stop.abort();
    if (this.context.state !== "closed") this.context.close();
    if (state) this.turn(state);
  }
}
