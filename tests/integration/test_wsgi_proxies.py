"""Proxies in front of a real Mongrel2: who the client is for WSGI applications, in gunicorn and on the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess
from http_rig import StartMongrel2, routes
from wsgi_rig import serving

import greentx
from greentx.wsgi import TrustedProxies, WSGIServer

pytestmark = pytest.mark.mongrel2

PROXY, STRANGER, CLIENT = "127.0.0.2", "127.0.0.3", "1.2.3.4"

APP = """
import json
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    names = "REMOTE_ADDR", "wsgi.url_scheme", "SERVER_PORT", "HTTP_X_FORWARDED_FOR"
    return [json.dumps({name: environ.get(name) for name in names}).encode()]
"""
application: Any = {}
exec(APP, application)
application = application["app"]


def ask(port: int, source: str, *lines: str) -> tuple[int, Any]:
    """Ask from an address of this machine; return the status, and what the application saw."""
    data = "\r\n".join(["GET / HTTP/1.1", "Host: h", "Connection: close", *lines, "", ""]).encode()
    with socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0)) as sock:
        sock.sendall(data)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    return status, json.loads(body) if status == 200 else body


FORWARDED = f"X-Forwarded-For: 9.9.9.9, {CLIENT}"
SECURE = "X-Forwarded-Proto: https"


@pytest.mark.parametrize("trusted", [PROXY, ["127.0.0.2/32", "::1"], TrustedProxies(PROXY)])
def test_a_trusted_proxy_says_who_the_client_is_and_nobody_else_does(trusted: Any) -> None:
    """The access log has the client's address, too; headers that disagree are answered 400."""
    with serving("greentx", application, trusted_proxies=trusted) as server:
        for _ in range(3):
            status, seen = ask(server.port, PROXY, FORWARDED, SECURE)
            assert (status, seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == (200, CLIENT, "https")
            assert seen["SERVER_PORT"] == "443" and seen["HTTP_X_FORWARDED_FOR"] == f"9.9.9.9, {CLIENT}"
            status, seen = ask(server.port, STRANGER, FORWARDED, SECURE)
            assert (status, seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == (200, STRANGER, "http")
            assert seen["SERVER_PORT"] == "80"
            assert ask(server.port, PROXY)[1]["REMOTE_ADDR"] == PROXY
        assert ask(server.port, PROXY, SECURE, "X-Forwarded-Ssl: off") == (400, b"Bad Request\n")
        assert ask(server.port, STRANGER, SECURE, "X-Forwarded-Ssl: off")[0] == 200
        clients = [line.split(" ", 1)[0] for line in server.log.getvalue().splitlines()]
    assert clients == [CLIENT, STRANGER, PROXY] * 3 + [STRANGER]


@pytest.mark.parametrize("times", [4, 5, 6])
@pytest.mark.parametrize("trusted", [PROXY, None])
def test_a_client_cannot_have_the_lines_of_a_proxy_cut_off(times: int, trusted: Any) -> None:
    """Mongrel2 hands on the first five lines of a name, and the proxy's is the last; applications may read it, too."""
    made_up = [f"X-Forwarded-For: 6.6.6.{number}" for number in range(times - 1)]
    with serving("greentx", application, trusted_proxies=trusted) as server:
        status, seen = ask(server.port, PROXY, *made_up, f"X-Forwarded-For: {CLIENT}")
        if times < 5:
            assert status == 200 and seen["REMOTE_ADDR"] == (CLIENT if trusted else PROXY)
        else:
            assert (status, seen) == (400, b"")
        status, _ = ask(server.port, PROXY, *[SECURE] * (times - 1), "X-Forwarded-Proto: http")
        # Up to there two that disagree are told.
        assert status == (200 if times < 5 and not trusted else 400)
        status, seen = ask(server.port, PROXY, *[SECURE] * times)
        assert status == (200 if times < 5 else 400)


def test_without_proxies_nothing_is_believed() -> None:
    """As gevent has it."""
    with serving("greentx", application) as server:
        seen = ask(server.port, "127.0.0.1", FORWARDED, SECURE)[1]
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("127.0.0.1", "http")


@pytest.mark.parametrize("clobber", [True, False])
@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_what_mongrel2_writes_itself_names_no_other_client(
    start_mongrel2: StartMongrel2, clobber: bool, protocol: str
) -> None:
    """It puts its peer in the place of what came, unless ``no_clobber_xff`` is set; the peer is who it was."""
    mongrel2 = start_mongrel2(routes(protocol), settings={} if clobber else {"no_clobber_xff": 1})
    (handler,) = mongrel2.handlers
    url = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
    with WSGIServer(url, application, log=None, trusted_proxies=PROXY) as server:
        server.start()
        seen = ask(mongrel2.port, PROXY, FORWARDED, SECURE)[1]
        assert seen["REMOTE_ADDR"] == (PROXY if clobber else CLIENT)
        assert seen["HTTP_X_FORWARDED_FOR"] == (PROXY if clobber else f"9.9.9.9, {CLIENT}")
        assert seen["wsgi.url_scheme"] == "https"
        seen = ask(mongrel2.port, STRANGER, FORWARDED, SECURE)[1]
        assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == (STRANGER, "http")


def test_a_websocket_is_opened_for_the_client() -> None:
    """Its environ is that of a request."""
    found: list[Any] = []

    def websocket(environ: Any, start_response: Any) -> Any:
        found.append((environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]))
        start_response("403 Forbidden", [])
        return [b"no"]

    lines = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    data = "\r\n".join(["GET / HTTP/1.1", "Host: h", "Connection: Upgrade", *lines, FORWARDED, SECURE, "", ""])
    with (
        serving("greentx", websocket, trusted_proxies="*") as server,
        socket.create_connection(("127.0.0.1", server.port), 10) as sock,
    ):
        sock.sendall(data.encode())
        assert sock.recv(12) == b"HTTP/1.1 403"
    assert found == [("9.9.9.9", "https")]


def test_a_wrong_proxy_is_told_at_once() -> None:
    """Before anything listens."""
    with pytest.raises(ValueError, match="trusted proxy 'nobody' is not an address"):
        WSGIServer(("127.0.0.1", 0), application, trusted_proxies="nobody")


# -- other programs ----------------------------------------------------------------------------------------------------

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a module of Python in a folder with the application; it is ended after the test."""
    (tmp_path / "proxied.py").write_text(APP)
    with ExitStack() as stack:

        def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
            environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent), "HOME": str(tmp_path)}
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=tmp_path,
                env={**environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.stdout.close)
            stack.callback(process.kill)
            return process

        yield start


def wait_for(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read what it says until a line has *pattern*."""
    said = []
    with gevent.Timeout(20):
        for line in process.stdout:
            said.append(line)
            if found := re.search(pattern, line):
                return found
    raise AssertionError(f"{pattern!r} was not said: {''.join(said)}")


def clients(port: int) -> list[tuple[str, str]]:
    """Who the client is for an application behind three proxies."""
    found = []
    for source in ("127.0.0.1", PROXY, STRANGER):
        seen = ask(port, source, FORWARDED, "X-Scheme: yes", SECURE)[1]
        found.append((seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]))
    return found


DEFAULT = [(CLIENT, "https"), (PROXY, "http"), (STRANGER, "http")]
TOLD = [("127.0.0.1", "http"), (CLIENT, "https"), (STRANGER, "http")]


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ((), {}, DEFAULT),
        (("--forwarded-allow-ips", PROXY), {"FORWARDED_ALLOW_IPS": "*"}, TOLD),
        ((), {"FORWARDED_ALLOW_IPS": f"{PROXY}"}, TOLD),
        (("--reload", "--forwarded-allow-ips", PROXY), {}, TOLD),
    ],
)
def test_the_command_is_told_as_gunicorn_is(run: Run, options: Any, variables: Any, expected: Any) -> None:
    """By the same option and variable, with the same default."""
    process = run("greentx", "serve", "proxied:app", "--bind", "127.0.0.1:0", *options, **variables)
    port = int(wait_for(process, r" on http://127.0.0.1:(\d+)/").group(1))
    if options[:1] == ("--reload",):
        wait_for(process, "serving proxied:app")
    assert clients(port) == expected
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_the_command_refuses_what_is_not_an_address(run: Run) -> None:
    """In one line, from the option and from the variable."""
    for options, variables in ((("--forwarded-allow-ips", "nobody"), {}), ((), {"FORWARDED_ALLOW_IPS": "nobody"})):
        process = run("greentx", "serve", "proxied:app", "--bind", "127.0.0.1:0", *options, **variables)
        said = process.communicate(timeout=20)[0]
        assert process.returncode == 2
        assert "trusted proxy 'nobody' is not an address" in said and "Traceback" not in said


CONFIG = """
forwarded_allow_ips = "127.0.0.2,10.0.0.0/8"
secure_scheme_headers = {"X-SCHEME": "yes"}
"""


@pytest.mark.parametrize(
    ("config", "variables", "expected"),
    [
        ("", {}, DEFAULT),
        ("", {"FORWARDED_ALLOW_IPS": PROXY}, TOLD),
        (CONFIG, {"FORWARDED_ALLOW_IPS": "*"}, TOLD),
    ],
)
def test_gunicorns_own_settings_count(
    run: Run, start_mongrel2: StartMongrel2, tmp_path: Path, config: str, variables: Any, expected: Any
) -> None:
    """And its access log has the client."""
    (tmp_path / "gunicorn.conf.py").write_text(config)
    mongrel2 = start_mongrel2(settings={"no_clobber_xff": 1})
    (handler,) = mongrel2.handlers
    url = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
    options = ("-k", "greentx.gunicorn.Worker", "--bind", "127.0.0.1:0", "--access-logfile", "-", "proxied:app")
    process = run("gunicorn", *options, GREENTX_CONNECT=url, **variables)
    wait_for(process, "greentx .* serves mongrel2://")
    assert clients(mongrel2.port) == expected
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    assert [line.split(" ", 1)[0] for line in said.splitlines() if "GET / HTTP" in line] == [one for one, _ in expected]
