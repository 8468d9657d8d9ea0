"""Chromium without a screen, driven over its DevTools protocol. Over a pipe: no port, no driver, no package."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
]
ANSWER_SECONDS = 60


class Chromium:
    """A browser while the block lasts, with an empty profile."""

    def __enter__(self) -> Chromium:
        assert PROGRAM, "there is no Chromium"
        self._profile = tempfile.mkdtemp(prefix="musicgen-chromium-")
        theirs, self._out = os.pipe()
        self._in, other = os.pipe()
        # It reads from 3 and writes to 4. Moved up first, as either may be one of these already.
        script = f'exec 8<&{theirs} 9>&{other}; exec "$@" 3<&8 4>&9'
        command = ["bash", "-c", script, "bash", PROGRAM, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        with Path(self._profile, "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs, other), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        os.close(theirs)
        os.close(other)
        self._numbers = itertools.count(1)
        self._bytes = b""
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def page(self) -> Page:
        """A tab of its own context: storage and all."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        return self.tab(context)

    def tab(self, context: str) -> Page:
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, target, context)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self._read(deadline - time.monotonic())
            assert answer is not None, f"no answer to {method}"
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def poll(self) -> None:
        """Take in what has happened."""
        while (event := self._read(0)) is not None:
            self.events.append(event)

    def _read(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._bytes:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium has gone"
            self._bytes += piece
        message, _, self._bytes = self._bytes.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, target: str, context: str) -> None:
        self.browser, self.session, self.target, self.context = browser, session, target, context
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        self.browser.poll()
        return [
            event["params"]
            for event in self.browser.events
            if event.get("method") == method and event.get("sessionId") == self.session
        ]

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """As on a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.run("window.before = true")
        self.call("Page.reload")
        self.until("document.readyState === 'complete' && !window.before")

    def run(self, script: str) -> Any:
        """The value of an expression; awaits a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, condition: str | Callable[[], Any], seconds: float = 180) -> Any:
        """Until it is true."""
        deadline = time.monotonic() + seconds
        found: Any = None
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # a page that is being left has no context
                found = self.run(f"!!({condition})") if isinstance(condition, str) else condition()
                if found:
                    return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}\n{self.text('main')}")

    def text(self, selector: str) -> str:
        found = self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(found).replace("\u00a0", " ")

    def fill(self, selector: str, value: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def click(self, selector: str) -> None:
        """With the mouse, where it is seen."""
        found = self.run(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            "it.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=found[0], y=found[1], button="left", clickCount=1)

    def press(self, key: str, code: int = 0, text: str = "", *, ctrl: bool = False) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def download_to(self, folder: Path) -> None:
        self.browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )

    def shot(self, path: Path) -> None:
        """All of the page, not only what is seen of it."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))
