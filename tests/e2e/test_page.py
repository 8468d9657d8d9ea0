"""The page in a browser, through the real service, with the built-in model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile

from musicgen_bento.schemas import ModelInfo
from tests.support.browser import PROGRAM, Chromium, Page
from tests.support.fake_hub import REPO, environment, fill, opened
from tests.support.server import Server

SIZES = {360: 740, 768: 1024, 1280: 900}
LONG = 240  # seconds of music: longer than any test takes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not PROGRAM and os.environ.get("MUSICGEN_TEST_PAGE") != "1":
        pytest.skip("there is no Chromium; MUSICGEN_TEST_PAGE=1 makes this a failure")
    with Server(tmp_path_factory.mktemp("server"), max_slots=1, max_queue=3) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.fixture
def page(server: Server, browser: Chromium) -> Iterator[Page]:
    page = browser.page()
    page.look(1280, 900)
    page.open(server.url)
    page.until("document.querySelector('.state')")
    yield page
    assert page.events("Runtime.exceptionThrown") == []
    assert [e["entry"] for e in page.events("Log.entryAdded") if e["entry"]["source"] == "security"] == []
    asked = {event["request"]["url"] for event in page.events("Network.requestWillBeSent")}
    assert [url for url in asked if not url.startswith((server.url, f"blob:{server.url}"))] == []
    for job in jobs(page):
        for _ in range(2):  # cancelled, then forgotten
            requests.delete(f"{server.url}/jobs/{job}", timeout=10)
    browser.call("Target.closeTarget", targetId=page.target)


def jobs(page: Page) -> list[str]:
    kept: list[str] = page.run("JSON.parse(localStorage.getItem('musicgen.jobs') ?? '[]').map((job) => job.id)")
    return kept


def generate(page: Page, prompt: str, duration: float, **fields: Any) -> None:
    count = page.run("document.querySelectorAll('.card').length")
    for name, value in {"prompt": prompt, "duration": duration, **fields}.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.until(f"document.querySelectorAll('.card').length === {count + 1}")


def finished(page: Page, count: int = 1) -> None:
    page.until(f"document.querySelectorAll('.player:not([hidden])').length === {count}")


def test_a_clip_is_made_with_true_progress_and_can_be_heard_and_kept(
    page: Page, server: Server, tmp_path: Path
) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => { const bar = document.querySelector('.card progress');"
        "if (bar?.hasAttribute('value')) seen.push(bar.value); })"
        ".observe(document.getElementById('list'), {subtree: true, attributes: true, childList: true})"
    )
    generate(page, "calm piano", 20, seed=7)
    [job] = jobs(page)
    finished(page)
    seen = page.run("seen")
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 1}) >= 2
    assert page.text(".card h3") == "calm piano"
    assert page.text(".card .facts") == "demo · 20 s · seed 7"
    # what is played and downloaded is what the service makes
    page.download_to(tmp_path)
    page.click("[data-part=download]")
    wav = tmp_path / "music-7.wav"
    page.until(wav.exists)
    assert wav.read_bytes() == server.generate(prompt="calm piano", duration=20, seed=7).content
    # drawn, and played
    drawn = (
        "(() => { const canvas = document.querySelector('canvas'); const seen = new Set();"
        "const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) seen.add(data.slice(at, at + 3).join());"
        "return seen.size; })()"
    )
    page.until(f"{drawn} > 0")
    before = page.run(drawn)
    page.click("[data-part=play]")
    page.until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'")
    page.until("Number(document.querySelector('[data-part=seek]').value) > 0.3")
    page.click("[data-part=seek]")
    page.until("Math.abs(document.querySelector('[data-part=seek]').value - 10) < 3")
    assert page.run(drawn) > before
    page.click("[data-part=play]")
    page.until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Play'")
    # nothing is left, on the server or among the jobs
    page.until("localStorage.getItem('musicgen.jobs') === '[]'")
    page.until(lambda: requests.get(f"{server.url}/jobs/{job}", timeout=10).status_code == 404)


def test_several_clips_stand_side_by_side(page: Page) -> None:
    generate(page, "one", 0.5)
    generate(page, "two", 0.5)
    finished(page, 2)
    tops, lefts = zip(
        *page.run("[...document.querySelectorAll('.card')].map((c) => [c.offsetTop, c.offsetLeft])"), strict=True
    )
    assert len(set(tops)) == 1
    assert len(set(lefts)) == 2
    assert [page.text(f"li:nth-child({place}) h3") for place in (1, 2)] == ["two", "one"]
    page.click("li:nth-child(1) [data-part=remove]")
    page.until("document.querySelectorAll('.card').length === 1")


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"prompt": ""}, "prompt", "Prompt should hold some text"),
        ({"prompt": "x", "duration": 9999}, "duration", "less than or equal to 300"),
        ({"prompt": "x", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "x", "temperature": 99}, "temperature", "less than or equal to 10"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_is_at_its_field_with_code_message_and_hint(
    page: Page, fields: dict[str, Any], field: str, says: str
) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.until(f"!document.getElementById('{field}-error').hidden")
    told = page.text(f"#{field}-error")
    assert says in told
    assert "invalid" in told
    assert "See /docs.json" in told
    assert page.run("document.activeElement.id") == field
    assert page.run(f"document.getElementById('{field}').getAttribute('aria-invalid')") == "true"
    assert page.run("document.querySelectorAll('.card').length") == 0
    page.run("document.getElementById('defaults').click()")
    generate(page, "x", 0.2, seed="")
    assert page.run("document.querySelectorAll('[aria-invalid], .wrong:not([hidden])').length") == 0
    finished(page)


def test_a_job_that_fails_says_why_and_can_be_tried_again(page: Page) -> None:
    """The hub cannot be reached here."""
    page.click("#real")
    assert page.run("document.getElementById('model').value") == "facebook/musicgen-small"
    assert "CC-BY-NC" in page.text("#model-about")
    assert "2.0 GB" in page.text("#model-about")
    generate(page, "dark", 1)
    page.until("document.querySelector('.card [data-part=alert]:not([hidden])')")
    assert "model_unavailable" in page.text(".card .alert")
    assert "HF_HOME" in page.text(".card .alert")
    page.run("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Try again').click()")
    page.until(
        "document.querySelectorAll('.card').length === 1 && document.querySelector('.card .alert:not([hidden])')"
    )


def test_a_model_on_its_way_says_how_far_it_is(page: Page) -> None:
    small = ModelInfo(
        id="facebook/musicgen-small", aliases=[], conditioning=["text"], state="loading", default=True, note=""
    ).model_dump()
    progress = {"step": "downloading", "done_bytes": 500_000_000, "total_bytes": 2_000_000_000, "ahead": None}
    for told, words in (
        (progress, "downloading, 0.5 GB of 2.0 GB"),
        ({**progress, "step": "waiting", "ahead": 2}, "waits for room in memory, 2 before it"),
        ({**progress, "step": "loading"}, "loading into memory"),
        (None, "loading into memory"),
    ):
        listed = json.dumps(json.dumps({"models": [{**small, "progress": told}]}))
        page.run(
            f"window.fetch = async () => new Response({listed}); import('/model_select.js').then((m) => m.refresh())"
        )
        page.fill("#model", small["id"])
        page.run("import('/model_select.js').then((models) => models.describe())")
        assert words in page.text("#model-about")


def test_a_model_is_downloaded_and_makes_its_clip(browser: Chromium, tmp_path: Path) -> None:
    """Through a real pool: not here, downloading, ready; the clip says the same as the list."""
    with opened(fill(tmp_path / "hub")) as hub, Server(tmp_path, environment(hub, tmp_path / "cache")) as server:
        hub.pause = 0.15
        page = browser.page()
        page.look(1280, 900)
        page.open(server.url)
        page.until("document.querySelector('.state')")
        page.fill("#model", REPO)
        page.run("import('/model_select.js').then((models) => models.describe())")
        assert re.match(r"not here yet · mono · 420 M parameters · 2.0 GB to download · \d", page.text("#model-about"))
        page.run(
            "window.seen = []; const text = (of) => document.querySelector(of)?.innerText;"
            "new MutationObserver(() => seen.push([text('.card [data-part=line]'), text('#model-about .state')]))"
            ".observe(document.body, {subtree: true, childList: true, characterData: true})"
        )
        generate(page, "calm", 0.2)
        finished(page)
        page.until("document.querySelector('#model-about .state').classList.contains('loaded')")
        on_its_way = r"downloading, \d+ MB of \d+ MB"
        seen = [(line, state) for line, state in page.run("seen") if line]
        assert any(re.fullmatch(f"Its model: {on_its_way}", line) for line, _ in seen), seen
        assert any(re.fullmatch(on_its_way, state) for _, state in seen), seen
        assert re.search(r" · [\d.]+ [MG]B of memory · ", page.text("#model-about"))
        assert page.events("Runtime.exceptionThrown") == []
        browser.call("Target.closeTarget", targetId=page.target)


def test_places_in_the_queue_and_cancelling(page: Page, server: Server) -> None:
    for prompt in ("first", "second", "third"):
        generate(page, prompt, LONG)
    page.until("document.querySelector('li:nth-child(3) .line').innerText.includes(' of 240 s')")
    page.until("document.querySelector('li:nth-child(2) .line').innerText.startsWith('Next in the queue')")
    page.until("document.querySelector('li:nth-child(1) .line').innerText.startsWith('In the queue, 1 before it')")
    assert not page.run("document.querySelector('li:nth-child(2) progress').hasAttribute('value')")
    running, *_ = jobs(page)
    page.click("li:nth-child(3) [data-part=cancel]")
    page.until("document.querySelector('li:nth-child(3) .facts').innerText.includes('cancelled')")
    page.until("document.querySelector('li:nth-child(2) .line').innerText.includes(' of 240 s')")
    page.until(lambda: requests.get(f"{server.url}/jobs/{running}", timeout=10).status_code == 404)
    assert page.text("#status") == "Cancelled."
    for place in (1, 2):
        page.click(f"li:nth-child({place}) [data-part=cancel]")
    page.until("localStorage.getItem('musicgen.jobs') === '[]'")


def test_a_full_queue_is_told_with_when_to_come_back(page: Page) -> None:
    for _ in range(4):
        generate(page, "x", LONG)
    page.click("#generate")
    page.until("!document.getElementById('error').hidden")
    assert "queue_full" in page.text("#error")
    assert "Come back in" in page.text("#error")


def test_a_reload_loses_nothing(page: Page) -> None:
    generate(page, "made across a reload", 30)
    page.until("document.querySelector('.line').innerText.includes(' of 30 s')")
    [job] = jobs(page)
    page.reload()
    page.until("document.querySelector('.card')")
    assert page.text(".card h3") == "made across a reload"
    assert jobs(page) == [job]
    finished(page)
    page.until("localStorage.getItem('musicgen.jobs') === '[]'")


def test_a_second_tab_leaves_the_first_one_its_jobs(page: Page, browser: Chromium, server: Server) -> None:
    generate(page, "mine", LONG)
    other = browser.tab(page.context)
    other.open(server.url)
    other.until("document.querySelector('.state')")
    time.sleep(1)
    assert other.run("document.querySelectorAll('.card').length") == 0
    browser.call("Target.closeTarget", targetId=other.target)


def test_a_job_that_the_server_forgot_is_told_and_made_again(page: Page) -> None:
    lost = [{"id": "gone", "request": {"prompt": "lost", "duration": 0.5, "model": "demo", "seed": 5}}]
    page.run(f"localStorage.setItem('musicgen.jobs', {json.dumps(json.dumps(lost))})")
    page.reload()
    page.until("document.querySelector('.card .alert:not([hidden])')")
    assert "unknown_job" in page.text(".card .alert")
    page.run("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Try again').click()")
    finished(page)
    assert page.text(".card .facts") == "demo · 0.5 s · seed 5"


def test_the_server_going_away_is_told_and_its_coming_back_is_noticed(page: Page) -> None:
    generate(page, "x", 20)
    page.until("document.querySelector('.line').innerText.includes(' of 20 s')")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **offline)
    page.until("document.querySelector('.line').innerText.startsWith('The server cannot be reached. Trying again')")
    page.click("#generate")
    page.until("document.getElementById('error').innerText.includes('The server cannot be reached')")
    page.call("Network.emulateNetworkConditions", offline=False, **offline)
    finished(page)


TRICKY = 'it\'s "loud" $HOME `x` \\ 🎻\nsecond line'


@pytest.mark.parametrize("kind", ["curl", "python"])
def test_what_is_copied_runs(page: Page, tmp_path: Path, kind: str) -> None:
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
    )
    for name, value in {"prompt": TRICKY, "duration": 0.5, "seed": 3, "top_p": 0.9}.items():
        page.fill(f"#{name}", str(value))
    page.click(f"#{kind}")
    page.until("window.copied")
    code = page.run("window.copied")
    command = ["bash", "-euc", code] if kind == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert soundfile.info(tmp_path / "music.wav").frames == 16_000
    asked = page.run("import('/request_form.js').then((form) => form.request())")
    assert asked == {"prompt": TRICKY, "model": "demo", "duration": 0.5, "seed": 3, "top_p": 0.9}


def test_without_a_clipboard_the_code_is_shown(page: Page) -> None:
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.fill("#prompt", "x")
    page.click("#curl")
    page.until("document.getElementById('snippet').open")
    assert page.run("document.getElementById('code').value").startswith("curl -X POST http://127.0.0.1")
    page.click("#snippet button")
    page.until("!document.getElementById('snippet').open")


def test_the_history_is_in_the_browser_and_brings_settings_back(page: Page, server: Server) -> None:
    generate(page, "remember me", 0.3, temperature=0.5)
    finished(page)
    seed = page.text(".card .facts").rpartition(" ")[2]
    page.reload()
    page.until("!document.getElementById('history').hidden")
    page.click("#history summary")
    assert "remember me" in page.text("#past")
    page.click("#past button")
    values = page.run("['prompt', 'duration', 'seed', 'temperature'].map((id) => document.getElementById(id).value)")
    assert values == ["remember me", "0.3", seed, "0.5"]
    page.click("#clear")
    page.until("document.getElementById('history').hidden")
    assert page.run("localStorage.getItem('musicgen.history')") == "[]"
    assert "remember me" not in server.log.read_text()


def test_it_works_from_the_keyboard_alone(page: Page) -> None:
    visited = []
    for _ in range(24):
        page.press("Tab", 9)
        visited.append(page.run("document.activeElement.id || document.activeElement.textContent.trim()"))
        if visited[-1] == "prompt":
            page.type("from the keyboard")
    expected = ["Skip to your clips", "prompt", "Lofi", "model", "real", "duration", "10", "seed", "generate", "curl"]
    assert [name for name in visited if name in expected][: len(expected)] == expected
    page.fill("#duration", "0.3")
    page.run("document.getElementById('prompt').focus()")
    page.press("Enter", 13, ctrl=True)
    finished(page)
    page.run("document.querySelector('[data-part=seek]').focus()")
    page.press("End", 35)
    page.until("document.querySelector('[data-part=seek]').getAttribute('aria-valuetext') === '0.3 s of 0.3 s'")


CONTROLS = {"button", "textbox", "combobox", "spinbutton", "slider", "link", "progressbar"}


def test_everything_has_a_name_for_a_screen_reader(page: Page) -> None:
    generate(page, "a", 0.3)
    finished(page)
    generate(page, "b", LONG)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert {node["role"]["value"] for node in controls} == CONTROLS
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    headings = [node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] == "heading"]
    assert headings == ["Text to music", "Your clips", "b", "a"]


UNREADABLE = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const parts = (color) => { const [r, g, b, a = 1] = numbers(color); return {rgb: [r, g, b], a}; };
  const light = ({rgb}) => rgb.map((c) => c / 255).map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const mix = (over, under, a) => ({rgb: over.rgb.map((c, at) => c * a + under.rgb[at] * (1 - a)), a: 1});
  const found = [];
  for (const it of document.querySelectorAll('body *')) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.checkVisibility() || it.closest('.unseen, .skip, select, template')) continue;
    let back = null;
    for (let up = it; up && !back; up = up.parentElement) {
      const color = parts(getComputedStyle(up).backgroundColor);
      if (color.a === 1) back = color;
    }
    const style = getComputedStyle(it);
    const color = mix(parts(style.color), back, Number(style.opacity));
    const [low, high] = [light(color), light(back)].sort((one, other) => one - other);
    const contrast = (high + .05) / (low + .05);
    if (contrast < 4.5) found.push([it.textContent.trim().slice(0, 40), contrast]);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_can_be_read_at_every_width(page: Page, dark: bool) -> None:
    generate(page, "a prompt of ordinary length, with a very" + "-long" * 30 + "-word", 0.5)
    finished(page)
    generate(page, "waiting", LONG)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.fill("#duration", "0")
    page.click("#generate")
    page.until("!document.getElementById('duration-error').hidden")
    for width, height in SIZES.items():
        page.look(width, height, dark=dark)
        page.until(f"innerWidth === {width}")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(UNREADABLE) == []
        small = page.run(
            "[...document.querySelectorAll('button, select, input, summary, a')].filter((it) => it.checkVisibility()"
            "&& !it.closest('.about') && it.getBoundingClientRect().height < 24 && !it.matches('.skip'))"
            ".map((it) => it.outerHTML)"
        )
        assert small == []


def test_what_is_served_is_fresh_and_keeps_to_itself(server: Server) -> None:
    page = requests.get(f"{server.url}/", timeout=10)
    assert page.headers["cache-control"] == "no-cache"
    tag = page.headers["etag"]
    again = requests.get(f"{server.url}/", headers={"If-None-Match": tag}, timeout=10)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert requests.get(f"{server.url}/app.js", timeout=10).headers["content-type"] == "text/javascript; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


LISTEN = """
(() => {
  const start = AudioBufferSourceNode.prototype.start;
  window.laid = [];
  AudioBufferSourceNode.prototype.start = function (when) {
    laid.push([when, this.buffer.duration, this.context.currentTime, this.buffer.getChannelData(0).slice()]);
    return start.call(this, when);
  };
})()
"""


def test_a_clip_is_heard_without_gaps_while_it_is_made(page: Page, server: Server) -> None:
    page.run(LISTEN)
    generate(page, "heard", 60, seed=5)
    page.until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.until("laid.length && document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'")
    assert page.run("document.querySelector('[data-part=making]').hidden") is False  # it is still being made
    page.until("laid.reduce((sum, [, seconds]) => sum + seconds, 0) > 59.99")
    laid = page.run("laid.map(([when, seconds, now]) => [when, seconds, now])")
    gaps = [b[0] - (a[0] + a[1]) for a, b in pairwise(laid)]
    # Each piece begins on the sample after the one before, unless that was over when it came: this machine is busy.
    dry = [b[2] >= a[0] + a[1] for a, b in pairwise(laid)]
    assert [gap for gap, ran_dry in zip(gaps, dry, strict=True) if abs(gap) > 1e-6 and not ran_dry] == []
    assert dry.count(False) > 20
    assert all(when >= now for when, _, now in laid)  # nothing was due before it was there
    body = {"prompt": "heard", "duration": 60, "seed": 5, "format": "pcm"}
    pcm = requests.post(f"{server.url}/stream", json=body, timeout=120).content
    heard = page.run("laid.reduce((sum, each) => sum + each[3].reduce((all, one) => all + Math.abs(one), 0), 0)")
    assert heard == pytest.approx(np.abs(np.frombuffer(pcm, "<i2") / 32_768).sum(), rel=1e-4)
    # what is made is kept, whole
    page.until("document.querySelector('[data-part=download]:not([hidden])')")
    page.click("[data-part=play]")
    page.until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Play'")


def test_listening_survives_a_reload_and_a_cancel(page: Page) -> None:
    generate(page, "long", LONG)
    page.until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.reload()
    page.until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'")
    page.click("[data-part=cancel]")
    page.until("document.querySelector('.card').classList.contains('over')")
    assert page.run("document.querySelector('.player').hidden")


def test_a_clip_that_is_listened_to_to_its_end_has_its_own_player_then(page: Page) -> None:
    generate(page, "short", 12)
    page.until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.until("document.querySelector('[data-part=seek]:not([disabled])') && document.querySelector('.making').hidden")
    page.click("[data-part=play]")
    page.until("Number(document.querySelector('[data-part=seek]').value) > 0.1")
