// The card of one clip: progress while it is generated, then its player.

import { createElement } from "./dom.js";
import { errorNodes, formatApproximate, formatClock, formatSeconds } from "./format.js";
import { withConnectionSlot } from "./job_polling.js";
import { StreamPlayer } from "./live_player.js";
import { loadProgress } from "./model_select.js";
import { Waveform, decodeWav } from "./waveform.js";

const template = document.getElementById("card");
const MIN_SPEED_SECONDS = 1.5; // of generation before its speed is estimated

let activePlayer = null; // only one clip plays at a time

export class ClipCard {
  /**
   * @param request the request of the clip
   * @param handlers functions of the card's buttons: cancel, reuse, retry, remove
   */
  constructor(request, handlers) {
    this.request = request;
    this.handlers = handlers;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.parts = Object.fromEntries([...this.element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.generating = true;
    this.parts.prompt.textContent = request.prompt;
    this.setProgress("Sending the request");
    this.setFacts(request);
    this.parts.listen.addEventListener("click", () => this.startPreview());
    this.parts.play.addEventListener("click", () => this.togglePlay());
    for (const name of ["cancel", "reuse", "remove"]) {
      this.parts[name].addEventListener("click", () => handlers[name](this));
    }
  }

  setFacts({ model, duration, seed }) {
    const facts = [model?.replace("facebook/", ""), duration && formatSeconds(duration), seed !== undefined && `seed\u00a0${seed}`];
    this.parts.facts.textContent = facts.filter(Boolean).join(" · ");
  }

  setStatus(text) {
    this.parts.status.textContent = text;
  }

  /** @param {number} [fraction] 0 to 1; undefined while unknown */
  setProgress(text, fraction) {
    this.setStatus(text);
    if (fraction === undefined) this.parts.progress.removeAttribute("value");
    else this.parts.progress.value = fraction;
  }

  /** Shows a new state of the job. */
  update(job) {
    this.job = job;
    this.setFacts(job);
    if (job.state === "queued") this.setProgress(queueText(job.position));
    if (job.state === "loading") this.updateLoadProgress();
    if (job.state === "running") {
      this.setProgress(this.generationText(job), job.audio_seconds / job.duration);
      this.parts.listen.hidden = !!this.live;
    }
  }

  /** Shows the loading progress of the job's model, which the list of models reports. */
  updateLoadProgress() {
    if (this.job?.state !== "loading") return;
    const { text, fraction } = loadProgress(this.job.model);
    this.setProgress(`Model: ${text}`, fraction);
  }

  generationText({ audio_seconds: generated, duration }) {
    if (generated >= duration) return "Normalizing the level";
    const now = performance.now() / 1000;
    this.firstUpdate ??= { time: now, generated };
    const elapsed = now - this.firstUpdate.time;
    if (elapsed > MIN_SPEED_SECONDS && generated > this.firstUpdate.generated) {
      this.speed = (generated - this.firstUpdate.generated) / elapsed;
    }
    const remaining = this.speed ? ` · ${formatApproximate((duration - generated) / this.speed)} left` : " generated";
    return `${generated.toFixed(1)} of ${formatSeconds(duration)}${remaining}`;
  }

  /** Shows that a request failed and is retried. */
  showRetrying(error) {
    this.setStatus(`${error.message} Retrying…`);
  }

  /** Shows the end of a job without audio. Without an error the user has cancelled it. */
  showFailure(error) {
    const { alert, generating, actions, download } = this.parts;
    generating.hidden = true;
    this.generating = false;
    this.stopPreview();
    actions.hidden = false;
    download.hidden = true;
    if (error) {
      alert.replaceChildren(...errorNodes(error));
      alert.hidden = false;
      this.addRetryButton();
    } else {
      this.parts.facts.textContent += " · cancelled";
      this.element.classList.add("cancelled");
    }
  }

  addRetryButton() {
    const button = createElement("button", "Try again", { type: "button", class: "plain" });
    button.addEventListener("click", () => this.handlers.retry(this, button));
    this.parts.actions.prepend(button);
  }

  /** Shows the finished audio: download link and player. */
  async showAudio({ wav, headers }) {
    const { generating, actions, download } = this.parts;
    const seed = headers.get("X-Seed");
    this.url = URL.createObjectURL(wav);
    this.length = Number(headers.get("X-Audio-Duration"));
    this.setFacts({ model: headers.get("X-Model"), duration: this.length, seed });
    download.href = this.url;
    download.download = `music-${seed}.wav`;
    download.hidden = false;
    generating.hidden = true;
    this.generating = false;
    actions.hidden = false;
    this.samples = await decodeWav(wav);
    if (!this.live) this.showFinalPlayer();
  }

  // ---- playback

  togglePlay() {
    const { live, audio } = this;
    if (live) {
      if (live.state === "playing") live.pause();
      else live.play();
    } else if (audio?.paused) audio.play();
    else audio?.pause();
  }

  /** Plays the clip while it is generated. The final player replaces this preview when it ends. */
  startPreview() {
    const { listen, player, seek } = this.parts;
    listen.hidden = true;
    player.hidden = false;
    seek.disabled = true;
    const live = new StreamPlayer(this.job.id, {
      onData: () => {
        this.waveform ??= new Waveform(this.parts.waveform, live.samples);
        this.waveform.scheduleRedraw();
      },
      onStateChange: () => this.updateLivePlayer(),
      speed: () => this.speed,
    });
    this.live = live;
    this.updateLivePlayer();
    withConnectionSlot(() => live.run());
  }

  updateLivePlayer() {
    const { live, parts } = this;
    if (live.state === "playing") this.stopOthers(live);
    if (live.state === "ended" || live.state === "failed") {
      this.live = null;
      if (this.samples) this.showFinalPlayer();
      else {
        parts.player.hidden = true;
        parts.listen.hidden = !this.generating;
      }
      return;
    }
    this.setPlayButton(live.state === "playing", live.state === "buffering");
    const tick = () => {
      if (this.live !== live) return;
      parts.time.textContent = live.state === "buffering" ? "…" : formatClock(live.position);
      this.waveform?.setPlayed(live.position / live.length);
      if (live.state === "playing") requestAnimationFrame(tick);
    };
    tick();
  }

  stopOthers(player) {
    if (activePlayer !== player) activePlayer?.pause();
    activePlayer = player;
  }

  setPlayButton(playing, buffering = false) {
    const { play } = this.parts;
    play.disabled = buffering;
    play.dataset.playing = String(playing);
    play.setAttribute("aria-label", buffering ? "Buffering" : playing ? "Pause" : "Play");
  }

  stopPreview() {
    const { live } = this;
    this.live = null;
    live?.close();
    this.parts.player.hidden = true;
  }

  showFinalPlayer() {
    if (!this.element.isConnected) return;
    this.parts.player.hidden = false;
    this.parts.seek.disabled = false;
    this.createPlayer();
    if (this.waveform) this.waveform.replace(this.samples);
    else this.waveform = new Waveform(this.parts.waveform, this.samples);
  }

  createPlayer() {
    const { seek, time } = this.parts;
    const audio = new Audio(this.url);
    this.audio = audio;
    seek.max = this.length;
    const showPosition = () => {
      seek.value = audio.currentTime;
      seek.setAttribute("aria-valuetext", `${formatSeconds(audio.currentTime)} of ${formatSeconds(this.length)}`);
      time.textContent = audio.paused && !audio.currentTime ? formatClock(this.length) : formatClock(audio.currentTime);
      this.waveform?.setPlayed(audio.currentTime / this.length);
    };
    const tick = () => {
      showPosition();
      if (!audio.paused) requestAnimationFrame(tick);
    };
    const update = () => {
      this.setPlayButton(!audio.paused);
      tick();
    };
    seek.addEventListener("input", () => {
      audio.currentTime = Number(seek.value);
      showPosition();
    });
    audio.addEventListener("play", () => {
      this.stopOthers(audio);
      update();
    });
    audio.addEventListener("pause", update);
    audio.addEventListener("ended", () => {
      audio.currentTime = 0;
    });
    audio.addEventListener("seeked", showPosition);
    update();
  }

  remove() {
    this.stopPreview();
    this.audio?.pause();
    if (this.url) URL.revokeObjectURL(this.url);
    this.element.remove();
  }
}

// `position` counts from 1; null while the model is not loaded.
function queueText(position) {
  if (position === null) return "Queued";
  return position === 1 ? "Next in the queue" : `Position ${position} in the queue`;
}
