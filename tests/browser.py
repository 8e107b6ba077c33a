"""A headless Chromium, driven over a pipe."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
INTO_PLACE = "import fcntl, os, sys; a, b = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]); "
INTO_PLACE += "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"  # the browser's own two descriptors


class Browser:
    """A headless Chromium with one tab, driven by the DevTools protocol over a pair of pipes."""

    def __init__(self, folder: Path):
        flags = ["--headless=new", "--remote-debugging-pipe", "--autoplay-policy=no-user-gesture-required"]
        flags += ["--mute-audio", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--hide-scrollbars", f"--user-data-dir={folder}"]
        flags += ["--no-sandbox"] * (os.geteuid() == 0)
        (theirs_in, self.to), (self.back, theirs_out) = os.pipe(), os.pipe()
        command = [sys.executable, "-c", INTO_PLACE, str(theirs_in), str(theirs_out), CHROMIUM, *flags]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.count, self.buffer, self.events, self.session = 0, b"", [], None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params) -> dict:
        """The result of one command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(20)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self, seconds: float) -> dict:
        """The next message; an event is kept as well."""
        while b"\0" not in self.buffer:
            assert select.select([self.back], [], [], seconds)[0], "the browser does not answer"
            part = os.read(self.back, 1 << 20)
            assert part, "the browser is gone"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, address: str, width: int, height: int = 800, scheme: str = "light") -> None:
        """Loads a page in a window of this width."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive(20)

    def run(self, script: str):
        """The value of an expression, awaited."""
        result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self("Browser.close")
        os.close(self.to)
        os.close(self.back)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
