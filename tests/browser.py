"""A headless Chromium that tests drive as a person would, through its debugging pipe."""

import base64
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.needs import BROWSER

FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync
    --disable-component-update --disable-default-apps --disable-extensions --hide-scrollbars --remote-debugging-pipe
    --force-color-profile=srgb""".split()
# The browser reads and writes at these two numbers: first out of the way of each other, then into their places.
AS_3_AND_4 = """
import fcntl, os, sys
theirs, yours = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(theirs, 3)
os.dup2(yours, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A tab.

    Attributes:
        requests: addresses that it has asked for.
        faults: what its console complained of, and errors of its scripts.
    """

    def __init__(self, sent: int, received: int) -> None:
        self._sent, self._received, self._rest = sent, received, b""
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.faults: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, in this tab."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._sent, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._note(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._received, 2**20)
            assert part, "the browser is gone"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, told: dict[str, Any]) -> None:
        method, what = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(what["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.faults.append(json.dumps(what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.faults.append(what["entry"]["text"])

    def open(self, url: str, size: tuple[int, int] = (1280, 900), dark: bool = False) -> None:
        """Go there, in a window of that size."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def does(self, script: str) -> Any:
        """The value of an expression, awaited."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, (script, told["exceptionDetails"])
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.does(f"Boolean({script})"):
            assert time.monotonic() < end, f"never: {script}\n{self.does('document.body.innerText')}\n{self.faults}"
            time.sleep(0.05)

    def choose_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files with an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop(self, paths: Sequence[Path], x: int = 300, y: int = 200) -> None:
        """Drag files over the page and let go."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **known, **({"text": text} if kind == "keyDown" else {}))

    def picture(self, path: Path, whole: bool = True) -> Path:
        """A PNG of the page, or of what fits the window."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
        return path


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A tab of a browser that ends with the block; ``profile``: a folder for it."""
    assert BROWSER, "no Chromium installed"
    (theirs, ours), (mine, yours) = os.pipe(), os.pipe()
    browser = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    line = [sys.executable, "-c", AS_3_AND_4, str(theirs), str(yours), *browser]
    process = subprocess.Popen(line, pass_fds=[theirs, yours], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(yours)
    try:
        yield Page(ours, mine)
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours)
        os.close(mine)
