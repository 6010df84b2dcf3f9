"""``greentx serve`` with a real mongrel2: it serves, ends gracefully, and starts anew when a file changes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from spoken_program import SpokenProgram
from websocket_peer import HEAD, Peer

import greentx
from greentx import Connector
from greentx.protocol.websocket.frames import Opcode

pytestmark = pytest.mark.mongrel2

CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"

APP = """
import os, threading, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send("VERSION " + message)
        return []
    if path == "/slow":
        print("slow has begun", flush=True)
        time.sleep(0.5)  # the handler's work takes a while
    if path == "/stuck":
        print("stuck has begun", flush=True)
        threading.Event().wait()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"VERSION {os.getpid()}".encode()]
"""


class Program(SpokenProgram):
    """A running ``greentx serve``; what it says is kept."""

    def __init__(self, folder: Path, *arguments: str, app: str | None = "cli_app:app") -> None:
        environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
        command = [sys.executable, "-W", "error", "-m", "greentx", "serve", *filter(None, [app]), *arguments]
        super().__init__(command, folder, environ)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, wait for its end and return its exit code."""
        self.process.send_signal(number)
        return self.finish()


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Program]]:
    """Starts the command in a folder with an application; it is ended after the test."""
    write(tmp_path, "one")
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> Program:
            program = Program(tmp_path, *arguments, **options)
            stack.callback(program.close)
            return program

        yield start


def write(folder: Path, version: str) -> None:
    """Write the application."""
    (folder / "cli_app.py").write_text(APP.replace("VERSION", version))


def add_to(folder: Path, code: str) -> None:
    """Write the application with *code* in front of it."""
    (folder / "cli_app.py").write_text(code + APP.replace("VERSION", "one"))


def ask(port: int, path: str = "/", host: str = "127.0.0.1") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection((host, port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def wait_for_end(pid: int) -> None:
    """Return when there is no such process."""
    with gevent.Timeout(10):
        while os.path.exists(f"/proc/{pid}"):
            gevent.sleep(0.005)


def children_of(pid: int) -> list[int]:
    """Return the processes that process *pid* has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    """Return the name of the program that process *pid* runs."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("how", [(), ("--reload",)], ids=["", "reload"])
def test_the_control_socket_is_closed_unless_it_is_asked_for(run, how):
    """It says its port."""
    program = run("--bind", "127.0.0.1:0", *how)
    program.wait_for("serving cli_app:app")
    assert program.end() == 0
    assert "control socket on" not in "".join(program.lines)
    program = run("--bind", "127.0.0.1:0", "--control", "127.0.0.1:0", *how)
    port = int(program.wait_for(r"control socket on port (\d+)").group(1))
    assert Connector(("127.0.0.1", port)).ping(5000)
    assert program.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_gracefully(run, tmp_path, number):
    """What runs is finished, WebSockets are told, the access log is written; monkey-patched, so it sleeps for one."""
    program = run("--bind", "127.0.0.1:0", "--access-log", "log", "--pool", "10", "--log-level", "info")
    port = int(program.wait_for(r"serving cli_app:app on http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port)
    assert peer.head() == HEAD
    peer.send("x")
    assert peer.message() == "one x"
    slow = gevent.spawn(ask, port, "/slow")
    program.wait_for("slow has begun")
    assert ask(port).startswith(b"HTTP/1.1 200 OK\r\n")
    program.process.send_signal(number)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert slow.get(timeout=10).startswith(b"HTTP/1.1 200 OK\r\n")
    assert program.finish() == 0
    assert "Traceback" not in "".join(program.lines)
    log = (tmp_path / "log").read_text().splitlines()
    assert sorted(re.findall(r'"GET (\S+) HTTP/1.1" (\d+)', "\n".join(log))) == [
        ("/", "200"),
        ("/slow", "200"),
        ("/ws", "101"),
    ]
    peer.sock.close()


@pytest.mark.parametrize(("timeout", "how"), [("0.1", ()), ("60", ()), ("60", ("--reload",))])
def test_what_does_not_end_is_killed(run, timeout, how):
    """After --graceful-timeout, or at a second signal."""
    program = run("--bind", "127.0.0.1:0", "--graceful-timeout", timeout, *how)
    port = int(program.wait_for(r"http://127.0.0.1:(\d+)/").group(1))
    stuck = gevent.spawn(ask, port, "/stuck")
    program.wait_for("stuck has begun")
    program.process.send_signal(signal.SIGTERM)
    program.wait_for("ending")
    if timeout == "60":
        program.process.send_signal(signal.SIGTERM)
    program.wait_for(r"WARNING .* requests that have not ended are killed \(1\): GET '/stuck' \(from 127.0.0.1\)")
    assert program.finish() == 0
    stuck.join(10)
    assert stuck.dead


def test_whom_it_kills_is_told(run):
    """Requests and WebSockets by their paths, without what may be secret."""
    program = run("--bind", "127.0.0.1:0", "--graceful-timeout", "0.3")
    port = int(program.wait_for(r"http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port, path="/stuck?secret=1")
    program.wait_for("stuck has begun")
    stuck = gevent.spawn(ask, port, "/stuck")
    program.wait_for("stuck has begun")
    assert program.end() == 0
    (line,) = (line for line in program.lines if "are killed" in line)
    assert "WebSocket '/stuck' (from 127.0.0.1)" in line
    assert "GET '/stuck' (from 127.0.0.1)" in line
    assert "secret" not in line
    stuck.get(timeout=10)
    peer.sock.close()


LOGGING = {
    "its own": "import logging\nlogging.basicConfig(format='APP %(name)s %(message)s', level='INFO')\n",
    "dictConfig": "import logging.config\n"
    "logging.config.dictConfig({'version': 1, 'formatters': {'app': {'format': 'APP %(name)s %(message)s'}},\n"
    "    'handlers': {'out': {'class': 'logging.StreamHandler', 'formatter': 'app'}},\n"
    "    'root': {'handlers': ['out'], 'level': 'INFO'}})\nimport logging\n",
}


@pytest.mark.parametrize(("kind", "how"), [("its own", ()), ("dictConfig", ("--reload",))])
def test_the_logging_of_the_application_is_its_own(run, tmp_path, kind, how):
    """It is set up as the application says, and nothing is logged twice, nor lost."""
    add_to(tmp_path, LOGGING[kind] + "logging.getLogger('shop').info('open for business')\n")
    program = run("--bind", "127.0.0.1:0", *how)
    program.wait_for("INFO greentx.cli: serving cli_app:app")
    assert program.end() == 0
    said = "".join(program.lines)
    assert re.findall(".*open for business", said) == ["APP shop open for business"]
    assert "APP greentx" not in said
    assert said.count("serving cli_app:app") == 1
    assert "INFO greentx.cli: ending\n" in said


def test_a_failure_to_load_is_told_whatever_the_logging_of_the_application_says(run, tmp_path):
    """It had switched our loggers off by then."""
    add_to(tmp_path, LOGGING["dictConfig"] + "raise ValueError('while importing')\n")
    program = run("--bind", "127.0.0.1:0", "--reload")
    program.wait_for("cli_app:app could not be imported; waiting for a change")
    program.wait_for("ValueError: while importing")
    assert program.end() == 0


def test_a_worker_that_does_not_end_is_told_of(run, tmp_path):
    """With --reload: one that computes at its end, and hears nothing."""
    add_to(
        tmp_path,
        "import atexit, signal\n@atexit.register\ndef compute():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    print('computing', flush=True)\n    while True: pass\n",
    )
    program = run("--bind", "127.0.0.1:0", "--reload")
    program.wait_for("serving cli_app:app")
    program.process.send_signal(signal.SIGTERM)
    program.wait_for("computing")
    program.process.send_signal(signal.SIGTERM)
    program.wait_for(r"WARNING greentx.cli: the process of the application \(\d+\) has not ended and is killed")
    assert program.finish() == 0


def test_an_application_may_say_where_the_lines_of_the_server_go(run, tmp_path):
    """As those of any other logger."""
    add_to(
        tmp_path,
        LOGGING["dictConfig"].replace("'root'", "'loggers': {'greentx': {'level': 'WARNING'}}, 'root'")
        + "logging.getLogger('greentx.cli').warning('to its handler')\n",
    )
    program = run("--bind", "127.0.0.1:0")
    program.wait_for("to its handler")
    assert program.end() == 0
    assert not [line for line in program.lines if "INFO greentx" in line]


def test_without_options_it_listens_on_this_machine_only(run, tmp_path):
    """On port 8000, which another program may have: then that is said."""
    program = run()
    line = program.wait_for(r"127.0.0.1:8000(?:/ | cannot be bound: Address already in use)").string
    if "cannot be bound" not in line:
        assert "serving cli_app:app on http://127.0.0.1:8000/ (mongrel2)\n" in line
        assert program.end() == 0


@pytest.mark.parametrize(
    ("bind", "shown"),
    [
        ("localhost:0", r"on http://(?:localhost|127\.0\.0\.1):(\d+)/ \(mongrel2\)$"),
        ("[::1]:0", r"on http://\[::1\]:(\d+)/ \(mongrel2\)$"),
        ("0.0.0.0:0", r"on http://localhost:(\d+)/ and every other address of this machine \(mongrel2\)$"),
        ("0", r"on http://localhost:(\d+)/ and every other address of this machine \(mongrel2\)$"),
    ],
)
def test_an_address_is_shown_as_a_url_that_can_be_opened(run, bind, shown):
    """In brackets, and a wildcard by what reaches it, which is not all that it means."""
    # Said by the process that owns the front end, and by the server itself.
    program = run("--bind", bind, *(["--reload"] if bind == "0" else []))
    port = int(program.wait_for(shown).group(1))
    host = "::1" if bind.startswith("[") else "127.0.0.1"
    assert ask(port, host=host).startswith(b"HTTP/1.1 200 OK\r\n")
    assert program.end() == 0


def test_a_factory_and_a_file_of_variables_start_an_application(run, tmp_path):
    """The application finds what the file says; with --reload a change of the file counts."""
    (tmp_path / "made.py").write_text(
        "import os\nfrom cli_app import app\ndef create(greeting):\n"
        "    assert greeting == 'hello'\n    print('SHOP is', os.environ['SHOP'], flush=True)\n    return app\n"
    )
    file = tmp_path / "env"
    file.write_text(
        "SHOP='of one'\nGREENTX_BIND=127.0.0.1:0\nGREENTX_RELOAD=yes\nGREENTX_APP=\"made:create('hello')\"\n"
    )
    program = run("--env-file", "env", app=None)
    program.wait_for("SHOP is of one$")
    program.wait_for("serving made:create")
    (tmp_path / "later").write_text(file.read_text().replace("of one", "of two"))
    os.rename(tmp_path / "later", file)
    program.wait_for("env has changed")
    program.wait_for("SHOP is of two$")
    program.wait_for("serving made:create")
    assert program.end() == 0


@pytest.mark.parametrize("how", [(), ("--reload",)], ids=["", "reload"])
def test_settings_of_mongrel2_can_be_said(run, how):
    """A body above its limit gets 413, from the front end that the option was for."""
    options = ["--set", "limits.content_length=20000", "--set", "upload.stream=0"]
    program = run("--bind", "127.0.0.1:0", *options, *how)
    port = int(program.wait_for(r"on http://127\.0\.0\.1:(\d+)/ ").group(1))
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20001\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert program.end() == 0


@pytest.mark.parametrize("how", [(), ("--reload",)], ids=["", "reload"])
@pytest.mark.parametrize(
    "options", [("--ping-timeout", "0.3"), ("--set", "limits.min_ping=1")], ids=["said", "by the front end's limit"]
)
def test_websockets_are_pinged_as_often_as_is_said(run, options, how):
    """And often enough for the limits of our own front end; what may wait is bounded as is said, too."""
    bounds = ["--max-queue-bytes", "100000", "--max-pending-bytes", "9000000"]
    program = run("--bind", "127.0.0.1:0", *options, *bounds, *how)
    port = int(program.wait_for(r" on http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port)
    assert peer.head() == HEAD
    assert peer.frame().opcode == Opcode.PING
    peer.sock.close()
    assert program.end() == 0


def test_it_talks_tls_with_a_certificate(run):
    """With --reload the process that owns the front end has it."""
    program = run("--bind", "127.0.0.1:0", "--reload", "--certfile", str(CERTIFICATE))
    port = int(program.wait_for(r"listening on https://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app over ipc")
    context = ssl.create_default_context(cafile=CERTIFICATE)
    url = f"https://localhost:{port}/"
    # The standard library's TLS blocks.
    with gevent.get_hub().threadpool.apply(
        urllib.request.urlopen, (url,), {"context": context, "timeout": 10}
    ) as answer:
        assert answer.read().startswith(b"one ")
    assert program.end() == 0


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGINT, ("--reload",))])
def test_it_ends_while_an_application_is_imported(run, tmp_path, number, how):
    """No hub runs then, that would hear of the signal; nothing was begun that has to end in order."""
    add_to(tmp_path, "print('importing', flush=True)\nwhile True: pass\n")
    program = run("--bind", "127.0.0.1:0", *how)
    program.wait_for("importing")
    assert program.end(number) == 0
    assert "Traceback" not in "".join(program.lines)


def test_several_front_ends(run, start_mongrel2):
    """--connect may be repeated: one process serves several Mongrel2s."""
    from greentx.edge import Handler

    servers = [start_mongrel2({"/": Handler(name)}) for name in ("one", "two")]
    urls = []
    for server in servers:
        (handler,) = server.handlers
        urls += ["--connect", f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"]
    program = run(*urls)
    program.wait_for("serving cli_app:app over ipc://.*, ipc://")
    answers = [ask(server.port) for server in servers]
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
    assert program.end() == 0


def test_several_processes_may_share_an_entry(run, start_mongrel2):
    """Each is told so, says what that means, and refuses WebSockets."""
    server = start_mongrel2()
    (handler,) = server.handlers
    url = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
    programs = [run("--connect", url, "--shared") for _ in range(2)]
    for program in programs:
        program.wait_for("WARNING .* several processes share this handler entry")
    peer = Peer(server.port)
    assert peer.head().startswith(b"HTTP/1.1 503 ")
    peer.sock.close()
    with gevent.Timeout(20):
        while len({ask(server.port).partition(b"\r\n\r\n")[2] for _ in range(4)}) < 2:
            pass
    assert [program.end() for program in programs] == [0, 0]


@pytest.mark.parametrize("reload", [(), ("--reload",)])
def test_the_largest_message_can_be_said(run, reload):
    """What is larger ends its WebSocket, in the process that runs the application."""
    program = run("--bind", "127.0.0.1:0", "--max-message-size", "2000000", *reload)
    port = int(program.wait_for(r" on http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port)
    assert peer.head() == HEAD
    peer.send("x" * 2000000)
    assert len(peer.message()) == 2000000 + len("one ")
    peer.send("x" * 2000001)
    assert peer.closed()[0] == 1009
    peer.sock.close()
    assert program.end() == 0


@pytest.mark.parametrize("reload", [(), ("--reload",)])
def test_the_origins_can_be_said(run, reload):
    """A page of another site gets 403, from the process that runs the application."""
    program = run("--bind", "127.0.0.1:0", "--origins", "same,https://ours.example", *reload)
    port = int(program.wait_for(r" on http://127.0.0.1:(\d+)/").group(1))
    host = f"localhost:{port}"
    for origin, status in ((f"http://{host}", b"101"), ("https://ours.example", b"101"), ("http://localhost", b"403")):
        peer = Peer(port, headers=f"Origin: {origin}\r\n", host=host)
        assert peer.head().startswith(b"HTTP/1.1 " + status)
        peer.sock.close()
    assert program.end() == 0


def test_reload(run, tmp_path):
    """A changed file starts the application anew: WebSockets get 1012, requests wait in the front end meanwhile."""
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    first = ask(port)
    assert b"\r\n\r\none " in first
    peer = Peer(port)
    assert peer.head() == HEAD
    write(tmp_path, "second")
    assert peer.closed() == (1012, "")
    peer.close(1012)
    assert peer.rest() == b""
    wait_for_end(int(first.split()[-1]))
    assert b"\r\n\r\nsecond " in ask(port)
    program.wait_for("cli_app.py has changed")
    program.wait_for("serving cli_app:app")
    (tmp_path / "cli_app.py").write_text("this is no Python")
    program.wait_for("could not be imported; waiting for a change")
    write(tmp_path, "third one")
    program.wait_for("serving cli_app:app")
    assert b"\r\n\r\nthird one " in ask(port)
    assert program.end() == 0
    peer.sock.close()


def test_with_reload_a_front_end_that_died_is_started_again(run):
    """The parent owns it and has to see to it; the worker finds it on the same endpoints."""
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    first = ask(port)
    (front_end,) = (pid for pid in children_of(program.process.pid) if name_of(pid) == "mongrel2")
    os.kill(front_end, signal.SIGKILL)
    program.wait_for("was started again")
    assert ask(port).split()[-1] == first.split()[-1]
    assert program.end() == 0


def test_reload_does_not_wait_for_what_the_application_started(run, tmp_path):
    """A process that it left behind has its output, and keeps nobody from starting it anew."""
    helper = tmp_path / "helper"
    (tmp_path / "cli_app.py").write_text(
        APP.replace("VERSION", "one")
        + "import subprocess\n"
        + f"open({str(helper)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
    )
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    try:
        write(tmp_path, "second")
        program.wait_for("serving cli_app:app")
        assert b"\r\n\r\nsecond " in ask(port)
        assert program.end() == 0
    finally:
        os.kill(int(helper.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("how", [(), ("--reload",)], ids=["", "reload"])
def test_with_app_dir_modules_of_the_folder_we_are_in_are_not_found(run, tmp_path, how):
    """With and without --reload, and whether it is started as a module or as a command."""
    (tmp_path / "apps").mkdir()
    add_to(tmp_path, "import os, sys\nprint('path', os.getcwd() in sys.path, sys.path[0], flush=True)\n")
    os.rename(tmp_path / "cli_app.py", tmp_path / "apps" / "cli_app.py")
    program = run("--bind", "127.0.0.1:0", "--app-dir", "apps", *how)
    program.wait_for(f"path False {tmp_path}/apps$")
    program.wait_for("serving cli_app:app")
    assert program.end() == 0


def test_reload_starts_an_application_that_is_named_behind_two_hyphens(run):
    """Behind which nothing is an option."""
    program = run("--reload", "--bind", "127.0.0.1:0", "--", "cli_app:app", app=None)
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    assert b"\r\n\r\none " in ask(port)
    assert program.end() == 0


def test_reload_waits_for_a_change_of_a_file_of_variables_that_is_wrong(run, tmp_path):
    """As for a module that is: it was right when the front end was started."""
    file, later = tmp_path / "env", tmp_path / "later"
    right = "GREENTX_BIND=127.0.0.1:0\nGREENTX_RELOAD=yes\nGREENTX_APP=cli_app:app\n"
    file.write_text(right)
    program = run("--env-file", "env", app=None)
    program.wait_for("serving cli_app:app")
    for wrong, said in (
        ("just words", "env, line 4: .*; waiting for a change"),
        ("GREENTX_POOL=many", "GREENTX_POOL in env: .*; waiting for a change"),
        ("GREENTX_APP=", "which application.*; waiting for a change"),
    ):
        later.write_text(f"{right}{wrong}\n")
        os.rename(later, file)
        program.wait_for(said)
    file.unlink()
    program.wait_for("env: No such file.*; waiting for a change")
    file.write_text(right)
    program.wait_for("serving cli_app:app")
    assert program.end() == 0


def test_reload_waits_for_a_change_of_an_application_that_exits_while_it_is_imported(run, tmp_path):
    """As for one that raises something else, whatever the code."""
    add_to(tmp_path, "import sys\nsys.exit(3)\n")
    program = run("--bind", "127.0.0.1:0", "--reload")
    program.wait_for("could not be imported; waiting for a change")
    program.wait_for("SystemExit: 3")
    add_to(tmp_path, "import sys  # another size\nsys.exit()\n")
    program.wait_for("could not be imported; waiting for a change")
    write(tmp_path, "second")
    program.wait_for("serving cli_app:app")
    assert program.end() == 0
    assert "".join(program.lines).count("could not be imported") == 2


@pytest.mark.parametrize("kind", ["module", "package", "folder"])
def test_a_module_that_is_not_there_yet_is_waited_for(run, tmp_path, kind):
    """Be it the application's own, or one that it imports; what has come is served."""
    os.rename(tmp_path / "cli_app.py", tmp_path / "later.py")
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("there is no module 'cli_app', in .*; waiting for a change")
    (tmp_path / "cli_app.py").write_text("from cli_lacking.inner import app\n")
    program.wait_for("could not be imported; waiting for a change")
    package = tmp_path / "cli_lacking"
    if kind == "module":
        (tmp_path / "new.py").write_text("import sys, later\nsys.modules[__name__ + '.inner'] = later\n")
        os.rename(tmp_path / "new.py", tmp_path / "cli_lacking.py")
    else:
        package.mkdir()
        if kind == "package":
            (package / "__init__.py").write_text("")
        program.wait_for("could not be imported; waiting for a change")
        os.rename(tmp_path / "later.py", package / "inner.py")
    program.wait_for("serving cli_app:app")
    assert b"\r\n\r\none " in ask(port)
    assert program.end() == 0


def test_the_worker_goes_when_its_parent_is_killed(run):
    """The application's process does not stay behind, nor the front end; of that a folder does."""
    before = set(os.listdir(tempfile.gettempdir()))
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    worker = int(ask(port).split()[-1])
    program.end(signal.SIGKILL)
    wait_for_end(worker)
    with gevent.Timeout(10):
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", port)).close()
    for name in set(os.listdir(tempfile.gettempdir())) - before:
        shutil.rmtree(os.path.join(tempfile.gettempdir(), name))
