// One clip on the page: what is known of it while it is made, then its music.

import { hold } from "./job_polling.js";
import { Live } from "./live_player.js";
import { arrival } from "./model_select.js";
import { Wave, decode } from "./waveform.js";
import { about, clock, fault, seconds } from "./format.js";

const template = document.getElementById("card");
const STEADY = 1.5; // seconds of work after which its speed says something

let playing = null; // one at a time

export class Card {
  // `hears` has what its buttons do: cancel, again, retry, remove.
  constructor(request, hears) {
    this.request = request;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.parts = Object.fromEntries([...this.element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.parts.prompt.textContent = request.prompt;
    this.parts.progress.removeAttribute("value");
    this.line("Asking for it");
    this.facts(request);
    this.parts.listen.addEventListener("click", () => this.listen());
    this.parts.play.addEventListener("click", () => {
      if (this.live) this.live.state === "playing" ? this.live.pause() : this.live.play();
      else if (this.audio?.paused) this.audio.play();
      else this.audio?.pause();
    });
    for (const name of ["cancel", "again", "remove"]) this.parts[name].addEventListener("click", () => hears[name](this));
    this.hears = hears;
    this.making = true;
  }

  facts({ model, duration, seed }) {
    const known = [model?.replace("facebook/", ""), duration && seconds(duration), seed !== undefined && `seed\u00a0${seed}`];
    this.parts.facts.textContent = known.filter(Boolean).join(" · ");
  }

  line(text) {
    this.parts.line.textContent = text;
  }

  // What the server says of the job.
  tell(job) {
    this.job = job;
    this.facts(job);
    if (job.state === "queued") this.progress(place(job.position));
    if (job.state === "loading") this.arriving();
    if (job.state === "running") {
      this.progress(this.made(job), job.audio_seconds / job.duration);
      this.parts.listen.hidden = !!this.live;
    }
  }

  // Its model is on its way; the list of the models says how far.
  arriving() {
    if (this.job?.state !== "loading") return;
    const { words, part } = arrival(this.job.model);
    this.progress(`Its model: ${words}`, part);
  }

  // `part` is 0 to 1; left out where nobody knows.
  progress(text, part) {
    this.line(text);
    if (part === undefined) this.parts.progress.removeAttribute("value");
    else this.parts.progress.value = part;
  }

  made({ audio_seconds: done, duration }) {
    if (done >= duration) return "Setting the level";
    const now = performance.now() / 1000;
    this.began ??= { at: now, done };
    const spent = now - this.began.at;
    if (spent > STEADY && done > this.began.done) this.speed = (done - this.began.done) / spent;
    const left = this.speed ? ` · ${about((duration - done) / this.speed)} left` : "";
    return `${done.toFixed(1)} of ${seconds(duration)}${left || " made"}`;
  }

  // Plays it while it is made. What is made goes on without it, and takes its place when it is over.
  listen() {
    const { listen, player, seek } = this.parts;
    listen.hidden = true;
    player.hidden = false;
    seek.disabled = true;
    const live = new Live(this.job.id, {
      grown: () => {
        this.wave ??= new Wave(this.parts.wave, live.samples);
        this.wave.grow();
      },
      turned: () => this.heard(),
      speed: () => this.speed,
    });
    this.live = live;
    this.heard();
    hold(() => live.run());
  }

  heard() {
    const { live, parts } = this;
    if (live.state === "playing") this.alone(live);
    if (live.state === "over" || live.state === "failed") {
      this.live = null;
      if (this.whole) this.own();
      else {
        parts.player.hidden = true;
        parts.listen.hidden = !this.making;
      }
      return;
    }
    this.pressed(live.state === "playing", live.state === "waiting");
    const tick = () => {
      if (this.live !== live) return;
      parts.time.textContent = live.state === "waiting" ? "…" : clock(live.position);
      this.wave?.show(live.position / live.length);
      if (live.state === "playing") requestAnimationFrame(tick);
    };
    tick();
  }

  alone(player) {
    if (playing !== player) playing?.pause();
    playing = player;
  }

  pressed(on, waiting = false) {
    const { play } = this.parts;
    play.disabled = waiting;
    play.dataset.on = String(on);
    play.setAttribute("aria-label", waiting ? "Waiting for enough of it" : on ? "Pause" : "Play");
  }

  trouble(failure) {
    this.line(`${failure.message} Trying again…`);
  }

  // There will be no music.
  end(error) {
    const { alert, making, actions, download } = this.parts;
    making.hidden = true;
    this.making = false;
    this.quiet();
    actions.hidden = false;
    download.hidden = true;
    if (error) {
      alert.replaceChildren(...fault(error));
      alert.hidden = false;
      this.retry();
    } else {
      this.parts.facts.textContent += " · cancelled";
      this.element.classList.add("over");
    }
  }

  retry() {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.textContent = "Try again";
    button.addEventListener("click", () => this.hears.retry(this, button));
    this.parts.actions.prepend(button);
  }

  async music({ wav, headers }) {
    const { making, actions, download } = this.parts;
    const seed = headers.get("X-Seed");
    this.url = URL.createObjectURL(wav);
    this.length = Number(headers.get("X-Audio-Duration"));
    this.facts({ model: headers.get("X-Model"), duration: this.length, seed });
    download.href = this.url;
    download.download = `music-${seed}.wav`;
    download.hidden = false;
    making.hidden = true;
    this.making = false;
    actions.hidden = false;
    this.whole = await decode(wav);
    if (!this.live) this.own();
  }

  // Its own player, once nobody listens to it in the making.
  own() {
    if (!this.element.isConnected) return;
    this.parts.player.hidden = false;
    this.parts.seek.disabled = false;
    this.player();
    if (this.wave) this.wave.replace(this.whole);
    else this.wave = new Wave(this.parts.wave, this.whole);
  }

  quiet() {
    const { live } = this;
    this.live = null;
    live?.close();
    this.parts.player.hidden = true;
  }

  player() {
    const { seek, time } = this.parts;
    const audio = new Audio(this.url);
    this.audio = audio;
    seek.max = this.length;
    const show = () => {
      seek.value = audio.currentTime;
      seek.setAttribute("aria-valuetext", `${seconds(audio.currentTime)} of ${seconds(this.length)}`);
      time.textContent = audio.paused && !audio.currentTime ? clock(this.length) : clock(audio.currentTime);
      this.wave?.show(audio.currentTime / this.length);
    };
    const turn = () => {
      this.pressed(!audio.paused);
      const tick = () => {
        show();
        if (!audio.paused) requestAnimationFrame(tick);
      };
      tick();
    };
    seek.addEventListener("input", () => {
      audio.currentTime = Number(seek.value);
      show();
    });
    audio.addEventListener("play", () => {
      this.alone(audio);
      turn();
    });
    audio.addEventListener("pause", turn);
    audio.addEventListener("ended", () => {
      audio.currentTime = 0;
    });
    audio.addEventListener("seeked", show);
    turn();
  }

  remove() {
    this.quiet();
    this.audio?.pause();
    if (this.url) URL.revokeObjectURL(this.url);
    this.element.remove();
  }
}

function place(position) {
  if (position === null) return "In the queue";
  if (position === 1) return "Next in the queue";
  return `In the queue, ${position - 1} before it`;
}
