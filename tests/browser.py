"""A real browser: Chromium without a window, which opens a page and tells what it did for that.

``CHROMIUM`` names one; otherwise it is the first on the PATH. It is spoken to over two pipes, in the DevTools protocol: no
port, and no driver. What it needs of a machine is a Chromium; tests skip where there is none.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 30.0
# It reads 3 and writes 4, and whoever starts it has other numbers.
_START = (
    "import fcntl, os, sys; "
    "ends = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 16) for each in sys.argv[1:3]]; "
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars"),
    *("--disable-gpu", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--no-proxy-server", "--force-color-profile=srgb"),
    *("--no-sandbox", "--disable-dev-shm-usage"),  # tests run as root in containers, and open pages of their own
)

type_pixels = npt.NDArray[np.uint8]


def chromium() -> str | None:
    """The browser of this machine; None: it has none."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Opened:
    """What opening a page brought about: addresses that were asked for, and what was complained of, in the console or before."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Browser:
    """One page at a time; ``with`` starts and ends the browser, whose profile is thrown away."""

    def __init__(self, executable: str, *, width: int = 1200, height: int = 900) -> None:
        """Nothing is started yet."""
        self._executable = executable
        self._size = f"--window-size={width},{height}"
        self._number = 0
        self._opened = Opened()
        self._loaded = False

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # A display, or a session bus, would be this machine's, and not the page's.
        given = {
            name: value for name, value in os.environ.items() if name not in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS")
        }
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START, str(theirs_in), str(theirs_out), self._executable),
                *(*_FLAGS, self._size, f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=given,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._to, self._from = os.fdopen(ours_out, "wb"), ours_in
        self._buffer = b""
        self._session: str | None = None
        try:
            targets = self._ask("Target.getTargets")["targetInfos"]
            page = next(each["targetId"] for each in targets if each["type"] == "page")
            self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self._ask(f"{domain}.enable")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def open(self, file: Path) -> Opened:
        """Open a file, wait until it and all that it names are there or have failed, and say what that took."""
        self._opened, self._loaded = Opened(), False
        failed = self._ask("Page.navigate", url=file.resolve().as_uri()).get("errorText")
        assert failed is None, failed
        while not self._loaded:
            self._hear()
        # Two frames later all that is drawn is on the page, and what scripts complain of has been said.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        return self._opened

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise's is waited for."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Another size of the window, in CSS pixels."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, selector: str, number: int = 0) -> type_pixels:
        """What is seen of an element, the ``number``-th that a selector finds: [height, width, 3], red, green and blue."""
        box = self.evaluate(
            f"(() => {{ const box = document.querySelectorAll({json.dumps(selector)})[{number}].getBoundingClientRect(); "
            "return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}; })()"
        )
        taken = self._ask("Page.captureScreenshot", clip=box | {"scale": 1}, captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as image:
            return np.asarray(image.convert("RGB"))

    # ---- the wire

    def _ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._hear()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _hear(self) -> dict[str, Any]:
        """The next message; of an event, what it says of the page is noted."""
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            assert time.monotonic() < end, "the browser says nothing"
            read = os.read(self._from, 1 << 20)
            assert read, f"the browser has ended, with {self._process.wait(10)}"
            self._buffer += read
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self._opened.requests.append(told["request"]["url"])
            case "Log.entryAdded" if told["entry"]["level"] in ("warning", "error"):
                self._opened.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in ("warning", "error", "assert"):
                self._opened.complaints.append(str([each.get("value") for each in told["args"]]))
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self._opened.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        return message

    def _close(self) -> None:
        self._to.close()  # it ends when nobody speaks to it any more
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._from)
        self._profile.cleanup()
