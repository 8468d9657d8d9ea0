// Player of a clip that is still being generated. Chunks are scheduled end to end on the audio context's clock.

import { streamAudio } from "./api.js";

const WAV_HEADER_BYTES = 44;
const MIN_BUFFER_SECONDS = 0.4; // before playback starts, so that a late chunk causes no gap
const SAMPLE_RATE = 32_000; // of every MusicGen; resampling at another rate would make the seams audible
const SPEED_SHARE = 0.8; // the rest is assumed to be generated at this share of the speed so far
const START_DELAY_SECONDS = 0.05;

export class StreamPlayer {
  /**
   * Must be created in an event handler of a click: browsers allow audio only there.
   * @param {string} id of the job
   * @param {{onData: function, onStateChange: function, speed: function}} handlers onData: more samples arrived;
   *   onStateChange: `state` changed; speed(): seconds of audio generated per second, undefined while unknown
   */
  constructor(id, handlers) {
    this.id = id;
    this.handlers = handlers;
    this.abort = new AbortController();
    this.state = "buffering"; // then playing, paused, ended, failed
    this.received = 0; // seconds
    this.scheduled = 0; // seconds scheduled on the audio context
    this.startTime = 0; // the context's time at which the clip's second 0 plays; each pause for buffering moves it forward
    this.chunks = []; // received, not yet scheduled
    this.context = new AudioContext({ sampleRate: SAMPLE_RATE });
  }

  /** Reads the whole stream. Never rejects. */
  async run() {
    try {
      const { headers, body } = await streamAudio(this.id, this.abort.signal);
      this.rate = Number(headers.get("X-Audio-Sample-Rate"));
      this.channels = Number(headers.get("X-Audio-Channels"));
      this.length = Number(headers.get("X-Audio-Duration"));
      if (this.rate !== SAMPLE_RATE) {
        this.context.close();
        this.context = new AudioContext({ sampleRate: this.rate });
      }
      this.samples = new Float32Array(Math.round(this.length * this.rate)); // of the first channel, for the waveform
      await this.readSamples(body.getReader());
      this.complete = true;
      this.schedule();
    } catch (error) {
      if (!this.abort.signal.aborted) this.setState("failed");
      this.close();
    }
  }

  // Splits the stream into whole frames behind the WAV header.
  async readSamples(reader) {
    const frameBytes = 2 * this.channels;
    let rest = new Uint8Array(0);
    let skip = WAV_HEADER_BYTES;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const bytes = new Uint8Array(rest.length + value.length);
      bytes.set(rest);
      bytes.set(value, rest.length);
      const end = skip + Math.floor((bytes.length - skip) / frameBytes) * frameBytes;
      if (end <= skip) {
        rest = bytes;
        continue;
      }
      this.append(new DataView(bytes.buffer, skip, end - skip));
      rest = bytes.slice(end);
      skip = 0;
    }
  }

  // Converts 16-bit PCM to a chunk.
  append(view) {
    const frames = view.byteLength / (2 * this.channels);
    const chunk = this.context.createBuffer(this.channels, frames, this.rate);
    for (let channel = 0; channel < this.channels; channel += 1) {
      const data = chunk.getChannelData(channel);
      for (let frame = 0; frame < frames; frame += 1) {
        data[frame] = view.getInt16(2 * (frame * this.channels + channel), true) / 32768;
      }
    }
    this.samples.set(chunk.getChannelData(0), Math.round(this.received * this.rate));
    this.received += frames / this.rate;
    this.chunks.push(chunk);
    this.schedule();
    this.handlers.onData();
  }

  /** Seconds to wait before playback can start and reach the end without another pause. */
  get bufferingSeconds() {
    if (this.complete) return 0;
    const speed = this.handlers.speed();
    if (!speed || this.received - this.scheduled < MIN_BUFFER_SECONDS) return Infinity;
    const generating = (this.length - this.received) / (SPEED_SHARE * speed);
    return Math.max(0, generating - (this.length - this.scheduled));
  }

  // Schedules received chunks on the audio context, and starts or interrupts playback as the buffer requires.
  schedule() {
    const now = this.context.currentTime;
    const underrun = this.startTime + this.scheduled < now && this.chunks.length;
    if (underrun) {
      if (this.state === "paused") return;
      if (this.state === "playing") this.setState("buffering");
    }
    if (this.state === "buffering") {
      if (this.bufferingSeconds > 0) return;
      const start = Math.ceil((now + START_DELAY_SECONDS) * this.rate) / this.rate; // on a sample, so no seam is audible
      this.startTime = start - this.scheduled;
      this.setState("playing");
    }
    if (this.state !== "playing" && this.state !== "paused") return;
    for (const chunk of this.chunks.splice(0)) {
      const source = this.context.createBufferSource();
      source.buffer = chunk;
      source.connect(this.context.destination);
      source.start(this.startTime + this.scheduled);
      this.scheduled += chunk.duration;
      this.lastSource = source;
    }
    if (!this.complete) return;
    if (this.startTime + this.scheduled < now) this.close("ended");
    else this.lastSource.onended = () => this.close("ended");
  }

  /** Playback position in seconds. */
  get position() {
    if (this.state === "ended") return this.length;
    return Math.min(this.scheduled, Math.max(0, this.context.currentTime - this.startTime)) || 0;
  }

  pause() {
    if (this.state !== "playing") return;
    this.context.suspend();
    this.setState("paused");
  }

  play() {
    if (this.state !== "paused") return;
    this.context.resume();
    this.setState("playing");
    this.schedule();
  }

  setState(state) {
    this.state = state;
    this.handlers.onStateChange();
  }

  close(state) {
    this.abort.abort();
    if (this.context.state !== "closed") this.context.close();
    if (state) this.setState(state);
  }
}
