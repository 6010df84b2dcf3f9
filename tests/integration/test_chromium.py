"""The chat of ``examples/chat.py`` in two tabs of a real browser, headless Chromium, driven over WebDriver."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from websocket_rig import in_thread, started

from greentx import Transceiver
from greentx.edge import Handler, Mongrel2

pytestmark = pytest.mark.mongrel2

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat.py"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of this file."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        if os.environ.get("GREENTX_WITHOUT_CHROMIUM") == "1":
            pytest.skip("no chromium, and GREENTX_WITHOUT_CHROMIUM=1 is set")
        pytest.fail(
            "chromium or chromedriver is missing: install them (Debian: apt-get install chromium chromium-driver), "
            "or set GREENTX_WITHOUT_CHROMIUM=1 to go without",
            pytrace=False,
        )
    with tempfile.TemporaryDirectory(prefix="gt-chromium-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(rb"started successfully on port (\d+)", line):
                    break
            one = Browser(f"http://127.0.0.1:{int(found[1])}")
            one.start(chromium, [*FLAGS, f"--user-data-dir={folder}"])
            try:
                yield one
            finally:
                one.call("DELETE", "")
        finally:
            process.kill()
            process.communicate()


class Browser:
    """As much of WebDriver as a chat needs; each call blocks, but lets greenlets run."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = ""

    def start(self, binary: str, flags: list[str]) -> None:
        options = {"browserName": "chrome", "goog:chromeOptions": {"binary": binary, "args": flags}}
        answer = self.call("POST", "", {"capabilities": {"alwaysMatch": options}})
        self.session = f"/{answer['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, may_fail: bool = False) -> Any:
        def ask() -> Any:
            data = None if method != "POST" else json.dumps(body or {}).encode()
            request = urllib.request.Request(f"{self.url}/session{self.session}{path}", data, method=method)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)["value"]
            except OSError:
                if not may_fail:
                    raise
                return None

        return in_thread(ask)

    def tab(self, url: str) -> str:
        """Open a page in a new tab and return the tab's handle."""
        handle = str(self.call("POST", "/window/new", {"type": "tab"})["handle"])
        self.call("POST", "/window", {"handle": handle})
        self.call("POST", "/url", {"url": url})
        return handle

    def run(self, handle: str, script: str) -> Any:
        """The value of a script, in one tab."""
        self.call("POST", "/window", {"handle": handle})
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def until(self, handle: str, what: str, condition: Callable[[Any], object]) -> None:
        """Wait until what *what* evaluates to fulfils *condition*."""
        value = None
        with gevent.Timeout(20, False):
            while not condition(value := self.run(handle, f"return {what}")):
                gevent.sleep(0.05)
            return
        raise AssertionError(f"{what} is {value!r}")

    def kill(self, handle: str) -> None:
        """End the process behind a tab, as if it had crashed."""
        self.call("POST", "/window", {"handle": handle})
        # The answer is that there is nobody left to answer.
        self.call("POST", "/goog/cdp/execute", {"cmd": "Page.crash", "params": {}}, may_fail=True)


LOG = "document.getElementById('log').innerText"
STATUS = "document.getElementById('status').innerText"


def say(text: str) -> str:
    return f"document.getElementById('text').value = {json.dumps(text)}; document.getElementById('send').click()"


def name(text: str) -> str:
    return (
        f"let box = document.getElementById('name'); box.value = {json.dumps(text)};"
        "box.dispatchEvent(new Event('change'))"
    )


def test_two_tabs_talk_one_is_killed_and_the_page_survives_a_restart(browser: Browser) -> None:
    """What one says the other sees; a crash is a leave; after a restart of everything the page is back by itself."""
    chat_class = runpy.run_path(str(EXAMPLE))["Chat"]
    with started(Mongrel2({"/": Handler("chat")})) as server:
        entry = server.handlers[0]

        @contextlib.contextmanager
        def chat() -> Iterator[Transceiver]:
            with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:
                one = chat_class(trans)
                serving = gevent.spawn(trans.serve, one.answer, websocket=one.talk)
                try:
                    yield trans
                finally:
                    trans.stop(1)
                    serving.join(5)

        with chat() as trans:
            ann = browser.tab(server.url)
            browser.until(ann, STATUS, lambda text: text == "1 here")
            browser.run(ann, name("Ann"))
            bob = browser.tab(server.url)
            browser.until(bob, STATUS, lambda text: text == "2 here")
            browser.run(bob, name("Bob"))
            browser.until(ann, LOG, lambda text: "is now Bob" in text)

            browser.run(ann, say("grüß dich, <b>Bob</b>"))
            browser.until(bob, LOG, lambda text: "grüß dich, <b>Bob</b>" in text)
            browser.run(bob, say("x" * 1000))  # large enough to be compressed
            browser.until(ann, LOG, lambda text: "x" * 1000 in text)

            browser.kill(bob)
            browser.until(ann, LOG, lambda text: "Bob left" in text)
            browser.until(ann, STATUS, lambda text: text == "1 here")
            assert len(trans.websockets) == 1

            server.kill()
            browser.until(ann, STATUS, lambda text: text == "reconnecting")
            assert len(trans.websockets) == 0
            server.start()
            browser.until(ann, STATUS, lambda text: text == "1 here")
            browser.run(ann, say("back again"))
            browser.until(ann, LOG, lambda text: "back again" in text)

        # The handler goes, too: the page is told, and finds the next one.
        browser.until(ann, STATUS, lambda text: text == "reconnecting")
        with chat():
            browser.until(ann, STATUS, lambda text: text == "1 here")
            browser.run(ann, say("and again"))
            browser.until(ann, LOG, lambda text: "and again" in text)
