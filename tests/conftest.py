"""What holds for every test: nothing is left behind, no greenlet dies unseen, nothing is skipped silently."""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import gevent.event
import gevent.hub
import hypothesis
import needs
import pytest
from front_ends import FRONT_ENDS, FrontEnd
from greenlet import greenlet

if TYPE_CHECKING:
    from greentx.edge import Mongrel2

# Seconds that greenlets and processes have to end after the test that started them.
GRACE = 10.0

# Files that take longest, longest first: they begin first, so that no process has a long one left when the others are
# done. What is missing here, or has gone, costs time only.
LONGEST = (
    "test_chaos.py",
    "test_gunicorn_worker.py",
    "test_benchmarks.py",
    "test_cli_workers.py",
    "test_cli_serve.py",
    "test_redis.py",
    "test_install.py",
    "test_relay_nodes.py",
    "test_cluster.py",
    "test_fuzz.py",
    "test_edge_limits.py",
    "test_leaving.py",
    "test_several_servers.py",
    "test_websocket_liveness.py",
    "test_restart.py",
    "test_slow_browsers.py",
    "test_http.py",
    "test_wsgi_nodes.py",
    "test_wsgi_websocket.py",
    "test_wsgi_server.py",
    "test_wsgi_proxies.py",
    "test_wsgi_applications.py",
    "test_relayed_websockets.py",
    "test_soak.py",
    "test_environment.py",
    "test_chain.py",
    "test_bench_behind_mongrel2.py",
    "test_ported_uploads.py",
    "test_relay_websockets.py",
    "test_transceiver.py",
    "test_typing.py",
    "test_websocket_clients.py",
)

# How long one example takes says more of the machine than of us: each test has its timeout.
hypothesis.settings.register_profile("greentx", deadline=None)
hypothesis.settings.load_profile("greentx")

# How pytest itself ends a test: what a greenlet raises of these is no error of its own.
_OUTCOMES = (pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)
# What it is called, which package has it, and what says that it is missing on purpose.
_MONGREL2 = ("mongrel2", "mongrel2-core", "GREENTX_WITHOUT_MONGREL2")
# Tests may change PATH.
_HAS_MONGREL2 = shutil.which(_MONGREL2[0]) is not None
_failed = pytest.StashKey[bool]()
_greenlets: weakref.WeakSet[greenlet] = weakref.WeakSet()
_errors: list[tuple[object, BaseException]] = []
_print_exception = gevent.hub.Hub.print_exception
_spawn_raw = gevent.spawn_raw


def pytest_configure(config: pytest.Config) -> None:
    """Watch gevent, and give the session a temporary folder of its own, so that ours can be told from others'."""
    # A shell starts what it puts in the background without Ctrl-C, and nohup without SIGHUP, which programs that tests
    # start would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gevent.Greenlet.add_spawn_callback(_greenlets.add)
    gevent.spawn_raw = gevent.hub.spawn_raw = _spawn_raw_seen
    gevent.hub.Hub.print_exception = _keep_exception
    # A test's timeout may strike while some greenlet runs: it ends the test, not that greenlet alone.
    gevent.hub.Hub.SYSTEM_ERROR = (*gevent.hub.Hub.SYSTEM_ERROR, *_OUTCOMES)
    # File descriptors that the hub opens when they are first needed belong to no test.
    hub = gevent.get_hub()
    hub.threadpool.apply(int)
    gevent.sleep(0)
    folder = tempfile.mkdtemp(prefix="gt-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    # Where Python keeps no byte code each of a thousand processes that tests start would compile all of greentx.
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(__file__).parents[1] / "greentx", quiet=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Rewrite the assertions of each file in one of the processes: they are most of what it costs to collect."""
    worker = getattr(session.config, "workerinput", None)
    here = Path(__file__).parent
    if worker is None or [Path(one).resolve() for one in session.config.args] != [here]:
        return (yield)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        number = int(worker["workerid"].removeprefix("gw"))
        for path in sorted(here.rglob("test_*.py"))[number :: worker["workercount"]]:
            if str(path.parent) not in sys.path:
                sys.path.insert(0, str(path.parent))  # as pytest itself does
            # What cannot be imported is told by the collection.
            with contextlib.suppress(Exception, *_OUTCOMES):
                importlib.import_module(path.stem)
        return (yield)
    finally:
        sys.dont_write_bytecode = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def _spawn_raw_seen(function: Callable[..., object], *args: Any, **options: Any) -> greenlet:
    one = _spawn_raw(function, *args, **options)
    _greenlets.add(one)
    return one


def _keep_exception(hub: Any, context: object, kind: Any, value: Any, tb: Any) -> None:
    if isinstance(value, BaseException) and not isinstance(value, _OUTCOMES):
        _errors.append((context, value))
    _print_exception(hub, context, kind, value, tb)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs mongrel2 where it is missing; in CI it fails."""
    if item.get_closest_marker("mongrel2") and not _HAS_MONGREL2:
        needs.go_without(*_MONGREL2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests failed: what they left behind is a consequence. One that met no mongrel2 is skipped."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    # By its name: greentx need not be importable here.
    met_none = call.excinfo is not None and call.excinfo.typename == "Mongrel2NotFound"
    if report.failed and met_none and not _HAS_MONGREL2 and not needs.is_a_must(_MONGREL2[2]):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.reportinfo()[1] or 0, needs.skipped(_MONGREL2[0]))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None, None, None]:
    """Say last, below the lines of all others, what was not run since a program is missing."""
    yield
    for line in needs.summary(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


@pytest.fixture
def greenlet_errors() -> list[tuple[object, BaseException]]:
    """The exceptions that greenlets died of in this test. A test that expects one looks at it and clears the list."""
    return _errors


class Resolver:
    """What gevent asks for addresses, in the place of the system's.

    Attributes:
        known: The addresses of names; others do not exist.
        asked: The names that were asked for.
        answers: Set while it answers.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.asked: list[str] = []
        self.answers = gevent.event.Event()
        self.answers.set()

    def getaddrinfo(self, host: str, port: object, *options: int) -> list[Any]:
        """As the system's, for TCP; blocks the greenlet while :attr:`answers` is not set."""
        self.asked.append(host)
        self.answers.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        address = self.known[host]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    """What resolves names while the test runs; it knows none at first."""
    hub = gevent.get_hub()
    before, hub.resolver = hub.resolver, Resolver()
    yield hub.resolver
    hub.resolver.answers.set()
    hub.resolver = before


@pytest.fixture
def start_mongrel2() -> Iterator[Callable[..., Mongrel2]]:
    """A function that makes and starts a ``Mongrel2`` with its arguments; it is killed after the test."""
    # Not at the top: what cannot be imported there would fail the tests that do without it, too.
    from greentx.edge import Mongrel2

    with contextlib.ExitStack() as stack:

        def start(*args: Any, **options: Any) -> Mongrel2:
            server = Mongrel2(*args, **options)
            server.start()
            stack.callback(server.stop, 0)  # a regular stop lasts half a second
            return server

        yield start


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    """Each of the servers that speak Mongrel2's protocol, in turn."""
    return FrontEnd(request.param)


@pytest.fixture
def start_front_end(front_end: FrontEnd) -> Iterator[Callable[..., Any]]:
    """A function that makes and starts one as ``FrontEnd.make`` does; it is ended after the test.

    The embedded one runs in this process, unless ``process=True`` asks for another one.
    """
    with contextlib.ExitStack() as stack:

        def start(*args: Any, process: bool = False, **options: Any) -> Any:
            return stack.enter_context(front_end.started(*args, process=process, **options))

        yield start


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a greenlet, a child process, a file descriptor or a folder of ours is still there."""
    _errors.clear()
    before = _Things()
    yield
    left = before.left_over()
    began = time.monotonic()
    collected = False
    while left and time.monotonic() - began < GRACE:
        # A traceback that the test looked at holds what its frames held. Most of what is left goes in a moment, and to
        # collect takes a tenth of a second.
        if not collected and time.monotonic() - began > 0.05:
            gc.collect()
            collected = True
        gevent.sleep(0.005)
        left = before.left_over()
    before.end_left_over()
    died = [f"{context!r} died of {''.join(traceback.format_exception(value))}" for context, value in _errors]
    if (left or died) and not request.node.stash.get(_failed, False):
        pytest.fail("\n".join([*(f"left behind: {thing}" for thing in left), *died]), pytrace=False)


class _Things:
    """What there is now that a test could leave behind."""

    def __init__(self) -> None:
        self.greenlets = _living_greenlets()
        self.children = set(_children())
        self.descriptors = _descriptors()
        self.folders = set(_folders())

    def left_over(self) -> list[str]:
        left = [f"greenlet {one!r}" for one in _living_greenlets() - self.greenlets]
        left += [f"process {pid} ({_command(pid)})" for pid in set(_children()) - self.children]
        descriptors = _descriptors()
        if len(descriptors) > len(self.descriptors):
            left += [f"file descriptor {number} ({target})" for number, target in descriptors - self.descriptors]
        left += [f"folder {name}" for name in set(_folders()) - self.folders]
        return left

    def end_left_over(self) -> None:
        """Keep it from disturbing the tests that follow."""
        for one in _living_greenlets() - self.greenlets:
            gevent.kill(one)
        for pid in set(_children()) - self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _living_greenlets() -> set[greenlet]:
    return {one for one in list(_greenlets) if not one.dead and one is not gevent.getcurrent()}


def _children() -> Iterable[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    own = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                # pid (command) state parent ...; the command may have spaces and brackets
                if file.read().rpartition(")")[2].split()[1] == own:
                    yield int(name)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ").strip()
    return "gone"


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def _folders() -> Iterable[str]:
    return (name for name in os.listdir(tempfile.gettempdir()) if name.startswith("greentx-"))
