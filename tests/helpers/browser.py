"""A real headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import requests

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the standard gives to an element's id


class Browser:
    """One window. A context manager; `profile` is an empty folder for the browser's own files."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}"
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy stands between us
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}", "--window-size=1000,900"]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._wait_until_up()
        session = self._send("POST", "/session", {"capabilities": wanted})
        self._url += f"/session/{session['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._send("DELETE", "")
        self._driver.terminate()
        self._driver.wait(10)

    def _wait_until_up(self) -> None:
        for _ in range(100):
            try:
                return self._send("GET", "/status")
            except requests.ConnectionError:
                time.sleep(0.05)
        raise TimeoutError("chromedriver does not answer")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        value = self._http.request(method, self._url + path, json=body, timeout=60).json()["value"]
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def open(self, page: Path | str) -> None:
        """A file, or an address."""
        self._send("POST", "/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def command(self, name: str, **parameters: object) -> Any:
        """A command of Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def script(self, code: str, *arguments: object) -> Any:
        """The value of a JavaScript expression."""
        return self._send("POST", "/execute/sync", {"script": f"return {code}", "args": arguments})

    def find(self, selector: str) -> dict[str, str]:
        return self._send("POST", "/element", {"using": "css selector", "value": selector})

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self.find(selector)[ELEMENT]}/click", {})

    def keys(self, selector: str, text: str) -> None:
        self._send("POST", f"/element/{self.find(selector)[ELEMENT]}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def drop(self, selector: str, *files: Path) -> None:
        """Drag files from outside over the element and let them go."""
        box = self.script("document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        heard = "document.addEventListener('drop', () => (window.dropped = true), { once: true, capture: true })"
        self.script(f"void (window.dropped = false, {heard})")
        for _ in range(10):  # a window that has just been made loses some
            for kind in ("dragEnter", "dragOver", "drop"):
                self.command("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
            for _ in range(40):
                if self.script("window.dropped"):
                    return
                time.sleep(0.05)
        raise TimeoutError("nothing was dropped")

    def drag(self, selector: str, right: int, kind: str = "mouse") -> None:
        """Press in the middle of the element, move to the right in steps, let go."""
        move = {"type": "pointerMove", "duration": 30}
        steps = [
            move | {"x": 0, "y": 0, "origin": self.find(selector)},
            {"type": "pointerDown", "button": 0},
            *(move | {"x": x, "y": 0, "origin": "pointer"} for x in (right // 2, right - right // 2)),
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": steps}
        self._send("POST", "/actions", {"actions": [pointer]})

    def screen(self, width: int, height: int, *, phone: bool = False) -> None:
        """Another size of screen, with touch and a dense display if it is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        """What the page is told of the user's liking: "light" or "dark"."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, target: Path) -> None:
        target.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page wrote to the console."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]
