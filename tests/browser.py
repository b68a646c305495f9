"""Headless Chromium, driven by its DevTools protocol over a pipe: nothing but the browser is needed.

A page's own policy forbids scripts. What is asked here is evaluated by the debugger, which that does
not bind, so a page is measured as it is.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--remote-debugging-pipe", "--no-proxy-server"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # it reaches no network, whatever a page asks for
)
HEIGHT = 844  # CSS pixels of the window


class Browser:
    """A running browser with one tab."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._next = to, back, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result. Raises RuntimeError with what the browser says."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Open a file in a window so wide, in a colour scheme, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page. Raises where it has none."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def messages(self) -> list[str]:
        """Return all that was written to the console since the page was opened."""
        self.ask("0")  # whatever was on its way is here then
        logged = [each["params"] for each in self.events if each["method"] == "Log.entryAdded"]
        said = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        return [entry["entry"]["text"] for entry in logged] + [
            json.dumps(each["params"]) for each in self.events if each["method"] in said
        ]

    def requests(self) -> list[str]:
        """Return the address of all that was asked for since the page was opened, itself first."""
        asked = [each for each in self.events if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in asked]

    def shoot(self, to: Path) -> None:
        """Save a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(shot["data"]))

    def print(self, to: Path) -> None:
        """Save the page as it is printed on A4, as a PDF."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True, **size)
        to.write_bytes(base64.b64decode(found["data"]))

    def _read(self) -> dict[str, Any]:
        """Wait for a message; an event is kept."""
        while b"\0" not in self._rest:
            part = os.read(self._back, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        if "method" in told:
            self.events.append(told)
        return told


@contextmanager
def browse() -> Iterator[Browser]:
    """Run a browser with a profile of its own, which is removed with it."""
    assert CHROMIUM
    (its_in, to), (back, its_out) = os.pipe(), os.pipe()
    profile = tempfile.mkdtemp(prefix="titer-browser-")
    words = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    # the browser reads commands from descriptor 3 and answers on 4, whatever these are here
    line = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    process = subprocess.Popen(
        ["bash", "-c", line, "bash", *words],
        pass_fds=(its_in, its_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": profile},
    )
    os.close(its_in)
    os.close(its_out)
    try:
        browser = Browser(to, back)
        yield browser
        browser.call("Browser.close")
        process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(to)
        os.close(back)
        shutil.rmtree(profile, ignore_errors=True)
