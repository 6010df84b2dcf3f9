"""A real browser, headless Chromium, driven over WebDriver: the chat of ``greentx demo``, and text."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from front_ends import started
from needs import go_without
from websocket_rig import in_thread

from greentx import Transceiver
from greentx.demo.chat import Chat
from greentx.edge import Handler, Mongrel2

pytestmark = pytest.mark.mongrel2

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
        go_without("chromium", "chromium chromium-driver", "GREENTX_WITHOUT_CHROMIUM")
    with tempfile.TemporaryDirectory(prefix="gt-chromium-", ignore_cleanup_errors=True) as folder:
        process, port = start_driver(driver)
        try:
            one = Browser(f"http://127.0.0.1:{port}")
            one.start(chromium, [*FLAGS, f"--user-data-dir={folder}"])
            try:
                yield one
            finally:
                one.call("DELETE", "")
        finally:
            process.kill()
            process.communicate()


def start_driver(driver: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start chromedriver, and return it with its port."""
    said = b""
    # It takes a free port of IPv6 and the same one of IPv4, and ends where that is another program's.
    for _ in range(5):
        process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if found := re.search(rb"started successfully on port (\d+)", line):
                return process, int(found[1])
        process.communicate()
    pytest.fail(f"chromedriver does not start: {said.decode()}", pytrace=False)


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

    def tell(self, handle: str, command: str, **params: object) -> Any:
        """Send a command of the DevTools protocol to one tab."""
        self.call("POST", "/window", {"handle": handle})
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def type(self, handle: str, keys: str) -> None:
        """Press keys, one after the other, wherever the focus of one tab is."""
        self.call("POST", "/window", {"handle": handle})
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": presses}]})

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


# As WebDriver names them.
TAB, ENTER = "\ue004", "\ue007"

PEOPLE = "[...document.querySelectorAll('#people li')].map((one) => one.innerText)"
#: What each line of the log says, with an asterisk where it is shown as our own.
LINES = """[...document.querySelectorAll('#log .say')].map((one) =>
    (one.classList.contains('mine') ? '*' : '') + one.children[0].innerText + ': ' + one.children[1].innerText)"""

#: The texts that are shown with less contrast than WCAG 2.2 asks for (AA: 4.5), and by how much.
FAINT = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if (!/rgba.*, 0\\)|transparent/.test(color)) return color;
  }
  return 'rgb(255, 255, 255)';
};
const ratio = (one, pseudo) => {
  const [x, y] = [light(getComputedStyle(one, pseudo).color), light(behind(one))].sort((x, y) => y - x);
  return (x + 0.05) / (y + 0.05);
};
const texts = [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility() &&
  (one.matches('input') || [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())));
return texts.map((one) => [one.id || one.className || one.tagName,
    Math.min(ratio(one), one.placeholder ? ratio(one, '::placeholder') : 99)])
  .concat(texts.length > 10 ? [] : [['too few texts', texts.length]]).filter(([, value]) => value < 4.5);
"""


@contextlib.contextmanager
def chatting() -> Iterator[Mongrel2]:
    """The chat behind a mongrel2."""
    with started(Mongrel2({"/": Handler("chat")})) as server:
        entry = server.handlers[0]
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:
            chat = Chat(trans)
            serving = gevent.spawn(trans.serve, chat.answer, websocket=chat.talk)
            yield server
            trans.stop(1)
            serving.join(5)


def test_the_page_shows_who_is_who_and_a_reload_what_was_said(browser: Browser) -> None:
    """Whoever asks for another's name gets one that differs, and the lines are shown as theirs, not as ours."""
    with chatting() as server:
        ann = browser.tab(server.url)
        browser.until(ann, STATUS, lambda text: text == "1 here")
        browser.run(ann, name("Ann"))
        browser.until(ann, PEOPLE, lambda people: people == ["Ann (you)"])
        other = browser.tab(server.url)
        browser.until(other, STATUS, lambda text: text == "2 here")
        browser.run(other, name("Ann"))
        browser.until(other, PEOPLE, lambda people: people == ["Ann", "Ann (2) (you)"])
        assert browser.run(other, "return document.getElementById('name').value") == "Ann (2)"
        # By the keyboard alone: the message has the focus, Enter sends it.
        browser.type(other, f"I am Ann{ENTER}")
        browser.until(ann, LINES, lambda lines: lines == ["Ann (2): I am Ann"])
        browser.type(ann, f"You are not{ENTER}")
        both = ["Ann (2): I am Ann", "*Ann (you): You are not"]
        browser.until(ann, LINES, lambda lines: lines == both)
        browser.run(ann, "location.reload()")
        browser.until(ann, LINES, lambda lines: lines == both)
        browser.until(ann, PEOPLE, lambda people: people == ["Ann (you)", "Ann (2)"])
        browser.run(ann, "socket.send('what?')")
        browser.until(ann, "document.getElementById('error').innerText", lambda text: text == "that is not JSON")
        assert browser.run(ann, "return socket.readyState") == 1


def test_the_page_can_be_read_by_everybody(browser: Browser) -> None:
    """In both colour schemes, on a phone and on a desk, by the keyboard, and by those who have it read out."""
    with chatting() as server:
        bob = browser.tab(server.url)
        browser.until(bob, STATUS, lambda text: text == "1 here")
        browser.run(bob, name("Bob"))
        for number in range(12):
            browser.run(bob, say(f"{number}, <b>all</b> of you: " + "word " * 12))
        browser.until(bob, LINES, lambda lines: len(lines) == 12)
        browser.run(bob, say("short") + "; socket.send('what?')")
        browser.until(bob, LINES, lambda lines: lines[-1] == "*Bob (you): short")
        browser.until(bob, "document.getElementById('error').innerText", lambda text: text == "that is not JSON")
        # As of many people: each has another colour.
        hues = (
            "document.querySelectorAll('.who').forEach((one, number) => one.style.setProperty('--hue', number * 30));"
        )
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.tell(bob, "Emulation.setEmulatedMedia", features=media)
            for width, height in ((360, 640), (1280, 800)):
                browser.tell(
                    bob,
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=width < 500,
                )
                assert browser.run(bob, hues + FAINT) == [], (scheme, width)
                assert browser.run(bob, "return document.documentElement.scrollWidth") <= width
                if folder := os.environ.get("GREENTX_SCREENSHOTS"):
                    picture = base64.b64decode(browser.call("GET", "/screenshot"))
                    Path(folder, f"chat-{scheme}-{width}.png").write_bytes(picture)
        # Without a click: a disabled button says nothing, and each thing has a role and a name.
        nodes = browser.tell(bob, "Accessibility.getFullAXTree")["nodes"]
        found = {
            (one["role"]["value"], one.get("name", {}).get("value", "").strip()) for one in nodes if not one["ignored"]
        }
        assert {
            ("heading", "greentx chat"),
            ("textbox", "you are"),
            ("list", "Who is here"),
            ("log", "Messages"),
            ("textbox", "Message"),
            ("button", "Send"),
        } <= found
        assert {"alert", "status"} <= {role for role, _ in found}
        order = []
        browser.run(bob, "document.body.tabIndex = -1; document.body.focus()")
        for _ in range(4):
            browser.type(bob, TAB)
            order.append(browser.run(bob, "return document.activeElement.id"))
        assert order == ["name", "log", "text", "send"]


def test_two_tabs_talk_one_is_killed_and_the_page_survives_a_restart(browser: Browser) -> None:
    """What one says the other sees; a crash is a leave; after a restart of everything the page is back by itself."""
    with started(Mongrel2({"/": Handler("chat")})) as server:
        entry = server.handlers[0]

        @contextlib.contextmanager
        def chat() -> Iterator[Transceiver]:
            with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:
                one = Chat(trans)
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


def test_text_is_shown_as_it_was_meant(browser: Browser) -> None:
    """``str`` goes out as UTF-8 and says so: a browser guesses another charset otherwise."""
    text = "grüß dich, Ελλάδα, 你好"
    with started(Mongrel2({"/": Handler("text")})) as server:
        entry = server.handlers[0]
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:
            serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, text))
            page = browser.tab(server.url)
            browser.until(page, "document.body.innerText", lambda shown: shown == text)
            trans.stop(1)
            serving.join(5)
