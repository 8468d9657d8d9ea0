"""The page in a browser, with the real service and the built-in model."""

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
from tests.support.browser import EXECUTABLE, Chromium, Page
from tests.support.fake_hub import REPO, fill_hub, hub_environment, running_hub
from tests.support.server import Server

VIEWPORTS = {360: 740, 768: 1024, 1280: 900}
LONG_SECONDS = 240  # of a clip that is not finished within a test


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not EXECUTABLE and os.environ.get("MUSICGEN_TEST_PAGE") != "1":
        pytest.skip("Chromium is not installed; MUSICGEN_TEST_PAGE=1 makes this a failure")
    with Server(tmp_path_factory.mktemp("server"), max_slots=1, max_queue=3) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.fixture
def page(server: Server, browser: Chromium) -> Iterator[Page]:
    page = browser.new_page()
    page.set_viewport(1280, 900)
    page.open(server.url)
    page.wait_until("document.querySelector('.state')")
    yield page
    assert page.events("Runtime.exceptionThrown") == []
    assert [e["entry"] for e in page.events("Log.entryAdded") if e["entry"]["source"] == "security"] == []
    urls = {event["request"]["url"] for event in page.events("Network.requestWillBeSent")}
    assert [url for url in urls if not url.startswith((server.url, f"blob:{server.url}"))] == []
    for job in stored_jobs(page):
        for _ in range(2):  # the first request cancels the job, the second deletes it
            requests.delete(f"{server.url}/jobs/{job}", timeout=10)
    browser.call("Target.closeTarget", targetId=page.target)


def stored_jobs(page: Page) -> list[str]:
    """Return the ids of the jobs in the browser's storage."""
    ids: list[str] = page.run("JSON.parse(localStorage.getItem('musicgen.jobs') ?? '[]').map((job) => job.id)")
    return ids


def generate(page: Page, prompt: str, duration: float, **fields: Any) -> None:
    """Fill the form, submit it, and wait for the new card."""
    count = page.run("document.querySelectorAll('.card').length")
    for name, value in {"prompt": prompt, "duration": duration, **fields}.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.wait_until(f"document.querySelectorAll('.card').length === {count + 1}")


def status_of(card: int, test: str) -> str:
    """Return a condition on the status text of a card, counted from 1."""
    return f"document.querySelector('li:nth-child({card}) .job-status').innerText.{test}"


def wait_finished(page: Page, count: int = 1) -> None:
    """Wait until that many clips have a player."""
    page.wait_until(f"document.querySelectorAll('.player:not([hidden])').length === {count}")


def test_a_clip_shows_progress_and_can_be_played_and_downloaded(page: Page, server: Server, tmp_path: Path) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => { const bar = document.querySelector('.card progress');"
        "if (bar?.hasAttribute('value')) seen.push(bar.value); })"
        ".observe(document.getElementById('list'), {subtree: true, attributes: true, childList: true})"
    )
    generate(page, "calm piano", 20, seed=7)
    [job] = stored_jobs(page)
    wait_finished(page)
    seen = page.run("seen")
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 1}) >= 2
    assert page.text(".card h3") == "calm piano"
    assert page.text(".card .facts") == "demo · 20 s · seed 7"
    # the download equals the response of POST /generate
    page.download_to(tmp_path)
    page.click("[data-part=download]")
    wav = tmp_path / "music-7.wav"
    page.wait_until(wav.exists)
    assert wav.read_bytes() == server.generate(prompt="calm piano", duration=20, seed=7).content
    # the waveform is drawn, and the clip plays
    colors = (
        "(() => { const canvas = document.querySelector('canvas'); const seen = new Set();"
        "const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen.add(data.slice(i, i + 3).join());"
        "return seen.size; })()"
    )
    page.wait_until(f"{colors} > 0")
    before = page.run(colors)
    page.click("[data-part=play]")
    page.wait_until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'")
    page.wait_until("Number(document.querySelector('[data-part=seek]').value) > 0.3")
    page.click("[data-part=seek]")
    page.wait_until("Math.abs(document.querySelector('[data-part=seek]').value - 10) < 3")
    assert page.run(colors) > before
    page.click("[data-part=play]")
    page.wait_until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Play'")
    # the job is deleted on the server and in the browser
    page.wait_until("localStorage.getItem('musicgen.jobs') === '[]'")
    page.wait_until(lambda: requests.get(f"{server.url}/jobs/{job}", timeout=10).status_code == 404)


def test_two_clips_are_shown_side_by_side(page: Page) -> None:
    generate(page, "one", 0.5)
    generate(page, "two", 0.5)
    wait_finished(page, 2)
    tops, lefts = zip(
        *page.run("[...document.querySelectorAll('.card')].map((c) => [c.offsetTop, c.offsetLeft])"), strict=True
    )
    assert len(set(tops)) == 1
    assert len(set(lefts)) == 2
    assert [page.text(f"li:nth-child({number}) h3") for number in (1, 2)] == ["two", "one"]
    page.click("li:nth-child(1) [data-part=remove]")
    page.wait_until("document.querySelectorAll('.card').length === 1")


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"prompt": ""}, "prompt", "Prompt must contain text"),
        ({"prompt": "x", "duration": 9999}, "duration", "less than or equal to 300"),
        ({"prompt": "x", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "x", "temperature": 99}, "temperature", "less than or equal to 10"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_validation_error_is_shown_at_its_field_with_code_message_and_hint(
    page: Page, fields: dict[str, Any], field: str, message: str
) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.wait_until(f"!document.getElementById('{field}-error').hidden")
    text = page.text(f"#{field}-error")
    assert message in text
    assert "invalid" in text
    assert "See /docs.json" in text
    assert page.run("document.activeElement.id") == field
    assert page.run(f"document.getElementById('{field}').getAttribute('aria-invalid')") == "true"
    assert page.run("document.querySelectorAll('.card').length") == 0
    page.run("document.getElementById('defaults').click()")
    generate(page, "x", 0.2, seed="")
    assert page.run("document.querySelectorAll('[aria-invalid], .field-error:not([hidden])').length") == 0
    wait_finished(page)


def test_a_failed_job_shows_its_error_and_can_be_retried(page: Page) -> None:
    """The server of this test cannot reach the hub, so the download fails."""
    page.click("#use-recommended")
    assert page.run("document.getElementById('model').value") == "facebook/musicgen-small"
    assert "CC-BY-NC" in page.text("#model-info")
    assert "2.0 GB" in page.text("#model-info")
    generate(page, "dark", 1)
    page.wait_until("document.querySelector('.card [data-part=alert]:not([hidden])')")
    assert "model_unavailable" in page.text(".card .alert")
    assert "HF_HOME" in page.text(".card .alert")
    page.run("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Try again').click()")
    page.wait_until(
        "document.querySelectorAll('.card').length === 1 && document.querySelector('.card .alert:not([hidden])')"
    )


def test_the_loading_progress_of_a_model_is_shown(page: Page) -> None:
    small = ModelInfo(
        id="facebook/musicgen-small", aliases=[], conditioning=["text"], state="loading", default=True, note=""
    ).model_dump()
    progress = {"step": "downloading", "done_bytes": 500_000_000, "total_bytes": 2_000_000_000, "ahead": None}
    for shown, text in (
        (progress, "downloading, 0.5 GB of 2.0 GB"),
        ({**progress, "step": "waiting", "ahead": 2}, "waiting for memory, 2 models ahead"),
        ({**progress, "step": "loading"}, "loading into memory"),
        (None, "loading into memory"),
    ):
        model_list = json.dumps(json.dumps({"models": [{**small, "progress": shown}]}))
        page.run(f"window.fetch = async () => new Response({model_list})")
        page.run("import('/model_select.js').then((models) => models.refreshModels())")
        page.fill("#model", small["id"])
        page.run("import('/model_select.js').then((models) => models.showModelInfo())")
        assert text in page.text("#model-info")


def test_a_model_is_downloaded_and_generates_a_clip(browser: Chromium, tmp_path: Path) -> None:
    """The model pool downloads and loads the model; the card and the model list show the same progress."""
    with (
        running_hub(fill_hub(tmp_path / "hub")) as hub,
        Server(tmp_path, hub_environment(hub, tmp_path / "cache")) as server,
    ):
        hub.pause_seconds = 0.15
        page = browser.new_page()
        page.set_viewport(1280, 900)
        page.open(server.url)
        page.wait_until("document.querySelector('.state')")
        page.fill("#model", REPO)
        page.run("import('/model_select.js').then((models) => models.showModelInfo())")
        assert re.match(r"not downloaded · mono · 420 M parameters · 2.0 GB to download · \d", page.text("#model-info"))
        page.run(
            "window.seen = []; const text = (of) => document.querySelector(of)?.innerText;"
            "new MutationObserver(() => seen.push([text('.card [data-part=status]'), text('#model-info .state')]))"
            ".observe(document.body, {subtree: true, childList: true, characterData: true})"
        )
        generate(page, "calm", 0.2)
        wait_finished(page)
        page.wait_until("document.querySelector('#model-info .state').classList.contains('loaded')")
        downloading = r"downloading, \d+ MB of \d+ MB"
        seen = [(line, state) for line, state in page.run("seen") if line]
        assert any(re.fullmatch(f"Model: {downloading}", line) for line, _ in seen), seen
        assert any(re.fullmatch(downloading, state) for _, state in seen), seen
        assert re.search(r" · [\d.]+ [MG]B of memory · ", page.text("#model-info"))
        assert page.events("Runtime.exceptionThrown") == []
        browser.call("Target.closeTarget", targetId=page.target)


def test_queue_positions_are_shown_and_jobs_can_be_cancelled(page: Page, server: Server) -> None:
    for prompt in ("first", "second", "third"):
        generate(page, prompt, LONG_SECONDS)
    page.wait_until(status_of(3, "includes(' of 240 s')"))
    page.wait_until(status_of(2, "startsWith('Next in the queue')"))
    page.wait_until(status_of(1, "startsWith('Position 2 in the queue')"))
    assert not page.run("document.querySelector('li:nth-child(2) progress').hasAttribute('value')")
    running, *_ = stored_jobs(page)
    page.click("li:nth-child(3) [data-part=cancel]")
    page.wait_until("document.querySelector('li:nth-child(3) .facts').innerText.includes('cancelled')")
    page.wait_until(status_of(2, "includes(' of 240 s')"))
    page.wait_until(lambda: requests.get(f"{server.url}/jobs/{running}", timeout=10).status_code == 404)
    assert page.text("#status") == "The clip was cancelled."
    for number in (1, 2):
        page.click(f"li:nth-child({number}) [data-part=cancel]")
    page.wait_until("localStorage.getItem('musicgen.jobs') === '[]'")


def test_a_full_queue_is_reported_with_a_retry_time(page: Page) -> None:
    for _ in range(4):
        generate(page, "x", LONG_SECONDS)
    page.click("#generate")
    page.wait_until("!document.getElementById('error').hidden")
    assert "queue_full" in page.text("#error")
    assert "Retry in" in page.text("#error")


def test_a_job_continues_after_a_reload(page: Page) -> None:
    generate(page, "reloaded", 30)
    page.wait_until(status_of(1, "includes(' of 30 s')"))
    [job] = stored_jobs(page)
    page.reload()
    page.wait_until("document.querySelector('.card')")
    assert page.text(".card h3") == "reloaded"
    assert stored_jobs(page) == [job]
    wait_finished(page)
    page.wait_until("localStorage.getItem('musicgen.jobs') === '[]'")


def test_a_second_tab_does_not_poll_the_jobs_of_the_first(page: Page, browser: Chromium, server: Server) -> None:
    generate(page, "first tab", LONG_SECONDS)
    second = browser.new_tab(page.context)
    second.open(server.url)
    second.wait_until("document.querySelector('.state')")
    time.sleep(1)
    assert second.run("document.querySelectorAll('.card').length") == 0
    browser.call("Target.closeTarget", targetId=second.target)


def test_a_job_unknown_to_the_server_is_reported_and_can_be_retried(page: Page) -> None:
    unknown = [{"id": "unknown", "request": {"prompt": "lost", "duration": 0.5, "model": "demo", "seed": 5}}]
    page.run(f"localStorage.setItem('musicgen.jobs', {json.dumps(json.dumps(unknown))})")
    page.reload()
    page.wait_until("document.querySelector('.card .alert:not([hidden])')")
    assert "unknown_job" in page.text(".card .alert")
    page.run("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Try again').click()")
    wait_finished(page)
    assert page.text(".card .facts") == "demo · 0.5 s · seed 5"


def test_a_lost_connection_is_reported_and_polling_resumes(page: Page) -> None:
    generate(page, "x", 20)
    page.wait_until(status_of(1, "includes(' of 20 s')"))
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **offline)
    page.wait_until(status_of(1, "startsWith('The server cannot be reached. Retrying')"))
    page.click("#generate")
    page.wait_until("document.getElementById('error').innerText.includes('The server cannot be reached')")
    page.call("Network.emulateNetworkConditions", offline=False, **offline)
    wait_finished(page)


QUOTED_PROMPT = 'it\'s "loud" $HOME `x` \\ 🎻\nsecond line'


@pytest.mark.parametrize("kind", ["curl", "python"])
def test_copied_code_runs(page: Page, tmp_path: Path, kind: str) -> None:
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
    )
    for name, value in {"prompt": QUOTED_PROMPT, "duration": 0.5, "seed": 3, "top_p": 0.9}.items():
        page.fill(f"#{name}", str(value))
    page.click(f"#{kind}")
    page.wait_until("window.copied")
    code = page.run("window.copied")
    command = ["bash", "-euc", code] if kind == "curl" else [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    assert soundfile.info(tmp_path / "music.wav").frames == 16_000
    request = page.run("import('/request_form.js').then((form) => form.readRequest())")
    assert request == {
        "prompt": QUOTED_PROMPT,
        "model": "demo",
        "duration": 0.5,
        "seed": 3,
        "top_p": 0.9,
    }


def test_code_is_shown_in_a_dialog_without_a_clipboard(page: Page) -> None:
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.fill("#prompt", "x")
    page.click("#curl")
    page.wait_until("document.getElementById('snippet').open")
    assert page.run("document.getElementById('code').value").startswith("curl -X POST http://127.0.0.1")
    page.click("#snippet button")
    page.wait_until("!document.getElementById('snippet').open")


def test_the_history_is_stored_in_the_browser_only_and_restores_settings(page: Page, server: Server) -> None:
    generate(page, "remember me", 0.3, temperature=0.5)
    wait_finished(page)
    seed = page.text(".card .facts").rpartition(" ")[2]
    page.reload()
    page.wait_until("!document.getElementById('history').hidden")
    page.click("#history summary")
    assert "remember me" in page.text("#history-list")
    page.click("#history-list button")
    values = page.run("['prompt', 'duration', 'seed', 'temperature'].map((id) => document.getElementById(id).value)")
    assert values == ["remember me", "0.3", seed, "0.5"]
    page.click("#clear")
    page.wait_until("document.getElementById('history').hidden")
    assert page.run("localStorage.getItem('musicgen.history')") == "[]"
    assert "remember me" not in server.log.read_text()


def test_the_page_can_be_used_with_the_keyboard_only(page: Page) -> None:
    visited = []
    for _ in range(24):
        page.press("Tab", 9)
        visited.append(page.run("document.activeElement.id || document.activeElement.textContent.trim()"))
        if visited[-1] == "prompt":
            page.type("from the keyboard")
    expected = ["Skip to your clips", "prompt", "Lofi", "model", "use-recommended"]
    expected += ["duration", "10", "seed", "generate", "curl"]
    assert [name for name in visited if name in expected][: len(expected)] == expected
    page.fill("#duration", "0.3")
    page.run("document.getElementById('prompt').focus()")
    page.press("Enter", 13, ctrl=True)
    wait_finished(page)
    page.run("document.querySelector('[data-part=seek]').focus()")
    page.press("End", 35)
    page.wait_until("document.querySelector('[data-part=seek]').getAttribute('aria-valuetext') === '0.3 s of 0.3 s'")


CONTROL_ROLES = {"button", "textbox", "combobox", "spinbutton", "slider", "link", "progressbar"}


def test_every_control_has_an_accessible_name(page: Page) -> None:
    generate(page, "a", 0.3)
    wait_finished(page)
    generate(page, "b", LONG_SECONDS)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROL_ROLES]
    assert {node["role"]["value"] for node in controls} == CONTROL_ROLES
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    headings = [node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] == "heading"]
    assert headings == ["Text to music", "Your clips", "b", "a"]


LOW_CONTRAST = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const parts = (color) => { const [r, g, b, a = 1] = numbers(color); return {rgb: [r, g, b], a}; };
  const luminance = ({rgb}) => rgb.map((c) => c / 255).map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const mix = (over, under, a) => ({rgb: over.rgb.map((c, at) => c * a + under.rgb[at] * (1 - a)), a: 1});
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility()) continue;
    if (element.closest('.visually-hidden, .skip, select, template')) continue;
    let background = null;
    for (let parent = element; parent && !background; parent = parent.parentElement) {
      const color = parts(getComputedStyle(parent).backgroundColor);
      if (color.a === 1) background = color;
    }
    const style = getComputedStyle(element);
    const color = mix(parts(style.color), background, Number(style.opacity));
    const [low, high] = [luminance(color), luminance(background)].sort((one, other) => one - other);
    const contrast = (high + .05) / (low + .05);
    if (contrast < 4.5) found.push([element.textContent.trim().slice(0, 40), contrast]);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_every_width_with_sufficient_contrast(page: Page, dark: bool) -> None:
    generate(page, "a prompt of ordinary length, with a very" + "-long" * 30 + "-word", 0.5)
    wait_finished(page)
    generate(page, "waiting", LONG_SECONDS)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.fill("#duration", "0")
    page.click("#generate")
    page.wait_until("!document.getElementById('duration-error').hidden")
    for width, height in VIEWPORTS.items():
        page.set_viewport(width, height, dark=dark)
        page.wait_until(f"innerWidth === {width}")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(LOW_CONTRAST) == []
        small = page.run(
            "[...document.querySelectorAll('button, select, input, summary, a')]"
            ".filter((each) => each.checkVisibility() && !each.closest('.model-info') && !each.matches('.skip')"
            "&& each.getBoundingClientRect().height < 24).map((each) => each.outerHTML)"
        )
        assert small == []


def test_the_page_has_cache_and_security_headers(server: Server) -> None:
    page = requests.get(f"{server.url}/", timeout=10)
    assert page.headers["cache-control"] == "no-cache"
    tag = page.headers["etag"]
    unchanged = requests.get(f"{server.url}/", headers={"If-None-Match": tag}, timeout=10)
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    assert requests.get(f"{server.url}/app.js", timeout=10).headers["content-type"] == "text/javascript; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


RECORD_SCHEDULE = """
(() => {
  const start = AudioBufferSourceNode.prototype.start;
  window.scheduled = [];
  AudioBufferSourceNode.prototype.start = function (when) {
    scheduled.push([when, this.buffer.duration, this.context.currentTime, this.buffer.getChannelData(0).slice()]);
    return start.call(this, when);
  };
})()
"""


def test_a_preview_plays_without_gaps(page: Page, server: Server) -> None:
    page.run(RECORD_SCHEDULE)
    generate(page, "preview", 60, seed=5)
    page.wait_until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.wait_until(
        "scheduled.length && document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'"
    )
    assert page.run("document.querySelector('[data-part=generating]').hidden") is False  # generation has not finished
    page.wait_until("scheduled.reduce((sum, [, seconds]) => sum + seconds, 0) > 59.99")
    chunks = page.run("scheduled.map(([when, seconds, now]) => [when, seconds, now])")
    gaps = [b[0] - (a[0] + a[1]) for a, b in pairwise(chunks)]
    # A chunk starts on the sample after the one before, unless the buffer ran out before it came (on a busy machine).
    underruns = [b[2] >= a[0] + a[1] for a, b in pairwise(chunks)]
    assert [gap for gap, underrun in zip(gaps, underruns, strict=True) if abs(gap) > 1e-6 and not underrun] == []
    assert underruns.count(False) > 20
    assert all(when >= now for when, _, now in chunks)  # no chunk is scheduled in the past
    body = {"prompt": "preview", "duration": 60, "seed": 5, "format": "pcm"}
    pcm = requests.post(f"{server.url}/stream", json=body, timeout=120).content
    loudness = page.run(
        "scheduled.reduce((sum, each) => sum + each[3].reduce((all, one) => all + Math.abs(one), 0), 0)"
    )
    assert loudness == pytest.approx(np.abs(np.frombuffer(pcm, "<i2") / 32_768).sum(), rel=1e-4)
    # the finished clip can be downloaded and played
    page.wait_until("document.querySelector('[data-part=download]:not([hidden])')")
    page.click("[data-part=play]")
    page.wait_until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Play'")


def test_a_preview_can_start_after_a_reload_and_ends_with_a_cancel(page: Page) -> None:
    generate(page, "long", LONG_SECONDS)
    page.wait_until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.reload()
    page.wait_until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.wait_until("document.querySelector('[data-part=play]').getAttribute('aria-label') === 'Pause'")
    page.click("[data-part=cancel]")
    page.wait_until("document.querySelector('.card').classList.contains('cancelled')")
    assert page.run("document.querySelector('.player').hidden")


def test_the_final_player_replaces_a_preview_that_played_to_its_end(page: Page) -> None:
    generate(page, "short", 12)
    page.wait_until("document.querySelector('[data-part=listen]:not([hidden])')")
    page.click("[data-part=listen]")
    page.wait_until(
        "document.querySelector('[data-part=seek]:not([disabled])') && document.querySelector('.generating').hidden"
    )
    page.click("[data-part=play]")
    page.wait_until("Number(document.querySelector('[data-part=seek]').value) > 0.1")
