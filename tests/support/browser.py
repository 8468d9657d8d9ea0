"""A driver for headless Chromium by its DevTools protocol, over a pipe.

The lock file has no browser driver, so the tests contain this one; the system's Chromium is the only requirement.
"""

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

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
REPLY_TIMEOUT_SECONDS = 60


class Chromium:
    """A browser with an empty profile; a context manager."""

    def __enter__(self) -> Chromium:
        assert EXECUTABLE, "Chromium is not installed"
        self._profile = tempfile.mkdtemp(prefix="musicgen-chromium-")
        browser_in, self._out = os.pipe()
        self._in, browser_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4. Copy both to 8 and 9 first, because they may be 3 or 4.
        script = f'exec 8<&{browser_in} 9>&{browser_out}; exec "$@" 3<&8 4>&9'
        command = ["bash", "-c", script, "bash", EXECUTABLE, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        with Path(self._profile, "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, pass_fds=(browser_in, browser_out), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        os.close(browser_in)
        os.close(browser_out)
        self._message_ids = itertools.count(1)
        self._buffer = b""
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

    def new_page(self) -> Page:
        """Open a tab in a new context, with its own storage."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        return self.new_tab(context)

    def new_tab(self, context: str) -> Page:
        """Open a tab in a context, which shares its storage."""
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, target, context)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a DevTools method and return its result; collect the events before it.

        Raises:
            AssertionError: the method failed, or the browser did not reply in time.
        """
        message_id = next(self._message_ids)
        request = {"id": message_id, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + REPLY_TIMEOUT_SECONDS
        while True:
            message = self._read(deadline - time.monotonic())
            assert message is not None, f"Chromium did not reply to {method}"
            if message.get("id") == message_id:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def poll(self) -> None:
        """Collect the events that have arrived."""
        while (event := self._read(0)) is not None:
            self.events.append(event)

    def _read(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has exited"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """One tab of a browser."""

    def __init__(self, browser: Chromium, session: str, target: str, context: str) -> None:
        self.browser, self.session, self.target, self.context = browser, session, target, context
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a DevTools method of this tab."""
        return self.browser.call(method, self.session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of one kind in this tab."""
        self.browser.poll()
        return [
            event["params"]
            for event in self.browser.events
            if event.get("method") == method and event.get("sessionId") == self.session
        ]

    def set_viewport(self, width: int, height: int, *, dark: bool = False) -> None:
        """Emulate a screen of this size and color scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page and wait until it is complete."""
        self.call("Page.navigate", url=url)
        self.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        """Reload the page and wait until it is complete."""
        self.run("window.before = true")
        self.call("Page.reload")
        self.wait_until("document.readyState === 'complete' && !window.before")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait_until(self, condition: str | Callable[[], Any], seconds: float = 180) -> Any:
        """Wait until a JavaScript expression or a function is true, and return its value."""
        deadline = time.monotonic() + seconds
        value: Any = None
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # during navigation the page has no context
                value = self.run(f"!!({condition})") if isinstance(condition, str) else condition()
                if value:
                    return value
            time.sleep(0.05)
        raise AssertionError(f"not true within {seconds} s: {condition}\n{self.text('main')}")

    def text(self, selector: str) -> str:
        """Return the visible text of an element, or '' if there is none."""
        text = self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(text).replace("\u00a0", " ")

    def fill(self, selector: str, value: str) -> None:
        """Set the value of a form field."""
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        x, y = self.run(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int = 0, text: str = "", *, ctrl: bool = False) -> None:
        """Press and release a key; `code` is its Windows virtual key code."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Insert text into the focused field."""
        self.call("Input.insertText", text=text)

    def download_to(self, folder: Path) -> None:
        """Save downloads into a folder."""
        self.browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )

    def screenshot(self, path: Path) -> None:
        """Save a PNG of the whole page, beyond the viewport too."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))
