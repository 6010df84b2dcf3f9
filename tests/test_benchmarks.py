"""Each benchmark starts, runs a tiny load and prints JSON; the load tests count, bound and refuse what they should."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from gevent.event import Event

import greentx

ROOT = Path(greentx.__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

#: Every program with the least that it can be asked for.
TINY = {
    "bench_broadcast.py": "--recipients 200 --repeat 1 --json",
    "bench_frames.py": "--sizes 16 --time 0.001 --repeat 1 --json",
    "bench_front.py": "--time 0.001 --repeat 1 --json",
    "bench_instructions.py": "--handler floor --count 10 --no-allocations",
    "bench_many_websockets.py": "--count 20 --rounds 1 --ping-timeout 1",
    "bench_relay.py": "--connections 2 --rounds 1 --seconds 0.1",
    "bench_registry.py": "--entries 300 --interval 0.1 --json",
    "bench_throughput.py": "--count 100 --rounds 1",
    "bench_websocket.py": "--rows recv,serve --sizes 20 --connections 2 --count 20 --rounds 1 --idle 5 --broadcast 5",
    "bench_wsgi.py": "--count 100 --rounds 1 --connections 2 --servers greentx,pywsgi",
}
NEED_MONGREL2 = {"bench_relay.py", "bench_websocket.py", "bench_wsgi.py"}
#: Those that run without the programs on PATH, as a real valgrind needs minutes on a busy machine.
ALONE = {"bench_instructions.py"}

#: A handler that says where its control socket is, and its pid; with an argument also the port of its mongrel2.
HANDLER = """
import contextlib, os, sys
import gevent
from greentx import Transceiver
from greentx.edge import Handler, Mongrel2

def answer(conn, req):
    if req.path == "/slow":
        gevent.sleep(60)  # never ends by itself: it is ended
    if req.path == "/close":
        conn.reply_http(req, "bye", headers={"Connection": "close"})
    elif req.path == "/nothing":
        conn.close(req)
    elif not req.is_disconnect():
        conn.reply_http(req, req.method, 404 if req.path == "/404" else 200)

def talk(ws):
    for message in ws:
        if ws.path == "/bye":
            ws.close(4000)
        elif ws.path == "/twice":
            ws.send("something else")
        ws.send(message)

with contextlib.ExitStack() as stack:
    addresses, port = ["127.0.0.1:1", "127.0.0.1:1"], 0
    if len(sys.argv) > 1:
        mongrel2 = stack.enter_context(Mongrel2({"/": Handler("load")}))
        addresses, port = [mongrel2.handlers[0].send_spec, mongrel2.handlers[0].recv_spec], mongrel2.port
    options = dict(rep_port=0, rep_ip="127.0.0.1", ping_timeout=0.2)
    trans = stack.enter_context(Transceiver("load", *addresses, **options))
    print(trans.rep_port, port, flush=True)
    trans.serve(answer, websocket=talk)
"""


@contextlib.contextmanager
def running(*options):
    """Run the handler; yields its ports."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLER, *options], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        control, web = line_of(process.stdout).split()
        yield {"control": f"127.0.0.1:{control}", "web": f"127.0.0.1:{web}", "process": process}
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.communicate()  # waits for it, and closes the pipe


def line_of(pipe):
    """Return the next line of a process; its pipes are typed as if they might be missing."""
    assert pipe is not None
    return pipe.readline()


@pytest.fixture(scope="module")
def handler():
    """The address of a handler's control socket."""
    with running() as ports:
        yield ports["control"]


@pytest.fixture(scope="module")
def front():
    """The address of a mongrel2 with a handler behind it."""
    with running("mongrel2") as ports:
        yield ports["web"]


def environment():
    """Return an environment in which greentx is the one that is tested."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(script, *options, status=0, path=None):
    """Run a program, with *path* as PATH; return the JSON of the last line of its output, and its standard error."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    variables = environment() if path is None else {**environment(), "PATH": path}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, (done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None, done.stderr


def refusal(name, options, monkeypatch, capsys):
    """Return what a program prints for a command line that it refuses, without starting a process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit) as raised:
        importlib.import_module(name).arguments()
    assert raised.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("traffic", ["varied", "same"])
@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[pytest.mark.mongrel2] if name in NEED_MONGREL2 else []) for name in TINY]
)
def test_a_benchmark_runs_and_prints_json(script, traffic):
    """With hardly any load; the figures mean nothing then. Varied traffic need not be asked for."""
    options = [*TINY[script].split(), *([] if traffic == "varied" else ["--traffic", traffic])]
    result, _ = run(script, *options, path="/nowhere" if script in ALONE else None)
    assert result["benchmark"] == script.removeprefix("bench_").removesuffix(".py")
    assert result["traffic"] == traffic
    assert {"python", "machine", "commit"} <= result.keys()


#: Stands in for valgrind: ends when it is told to, as the handler that it runs, and counts a thousand of everything.
VALGRIND = """#!/bin/sh
while :; do
    case $1 in --log-file=*) log=${1#*=} ;; --*) ;; *) break ;; esac
    shift
done
exec 3<&0
"$@" <&3 &
trap "kill $!" TERM
wait $!
wait $!
printf 'Collected : 1000\\ntotal heap usage: 1,000 allocs, 9 frees, 1,000 bytes allocated\\n' >"$log"
"""


def test_what_two_runs_have_in_common_is_not_counted_for_a_request(tmp_path):
    """Here both need the same, so their requests need nothing."""
    (tmp_path / "valgrind").write_text(VALGRIND)
    (tmp_path / "valgrind").chmod(0o755)
    options = ["--tool", "callgrind", "--handler", "floor", "--count", "10"]
    result, _ = run("bench_instructions.py", *options, path=f"{tmp_path}:{os.environ['PATH']}")
    figures = {"instructions": 0.0, "allocations": 0.0, "allocated_bytes": 0.0}
    assert (result["tool"], result["results"]) == ("callgrind", {"floor": figures})


def test_nothing_is_counted_where_no_tool_is_there():
    """Which is said, and no failure: the other benchmarks go on."""
    result, errors = run("bench_instructions.py", path="/nowhere")
    assert (result["tool"], result["results"]) == (None, {})
    assert "valgrind" in errors


@pytest.mark.parametrize(
    ("read", "text", "counts"),
    [
        ("read_perf", "# started\n\n123456,,instructions:u,1000,100.00,,\n", (123456,)),
        ("read_callgrind", "==7== Events    : Ir\n==7== Collected : 130138315\n", (130138315,)),
        (
            "read_memcheck",
            "==7==   total heap usage: 1,010 allocs, 999 frees, 155,599 bytes allocated\n",
            (1010, 155599),
        ),
        ("read_perf", "<not supported>,,instructions:u,0,100.00,,\n", None),
        ("read_callgrind", "==7== Killed\n", None),
    ],
)
def test_what_a_tool_counted_is_read(monkeypatch, read, text, counts):
    """A tool that could not count says so in other words."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    function = getattr(importlib.import_module("bench_instructions"), read)
    if counts is None:
        with pytest.raises(ValueError, match=r"invalid literal|did not say"):
            function(text)
    else:
        assert function(text) == counts


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    ("options", "started"),
    [
        ("bench_throughput.py --rounds 1000 --handlers serve", 2),
        ("bench_many_websockets.py --count 5 --ping-timeout 60", 1),
        # Each row has a mongrel2.
        pytest.param(
            "bench_websocket.py --connections 2 --rounds 1000000 --rows recv,serve", 4, marks=pytest.mark.mongrel2
        ),
        # gunicorn has a worker.
        ("bench_wsgi.py --rounds 1000000 --connections 2 --servers pywsgi,gunicorn", 3),
    ],
)
def test_a_benchmark_that_is_ended_leaves_no_process(tmp_path, options, started, number):
    """However it is: its servers see the end of their input, or are killed by the kernel."""
    script, *more = options.split()
    command = [sys.executable, str(BENCHMARKS / script), *more]
    output = subprocess.DEVNULL
    # A server that is ended while it starts may leave a folder.
    variables = {**environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        while len(found := descendants(process.pid)) < started:
            assert process.poll() is None
            time.sleep(0.05)
        ends = []
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                ends.append(os.pidfd_open(pid))
                stack.callback(os.close, ends[-1])
        process.send_signal(number)
        for end in ends:
            assert select.select([end], [], [], 40)[0]


def descendants(pid):
    """The processes that a process has started, and those that these have."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found[1:]


def test_many_websockets_are_counted_to_the_last():
    """Opened, pinged, told and closed, each of them."""
    result, _ = run("bench_many_websockets.py", *["--count", "300", "--rounds", "1", "--ping-timeout", "1"])
    assert (result["failed"], result["received"], result["closed"], result["dropped"]) == ("", 300, {"1000": 300}, {})
    assert result["pings"] >= 300
    assert result["bytes_per_connection"] > 0
    assert set(result["seconds"]) == {"opening", "pinging", "broadcasting", "closing"}


def test_many_websockets_are_not_waited_for_where_the_handler_has_died():
    """It cannot tell anybody that it has gone."""
    command = [sys.executable, str(BENCHMARKS / "bench_many_websockets.py"), "--count", "5", "--ping-timeout", "60"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            assert line_of(process.stderr).startswith("pinging: 5 opened, ")
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                os.kill(int(file.read()), signal.SIGKILL)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1
    assert json.loads(output)["failed"] == "pinging: the handler ended with status -9"
    assert "failed: pinging: the handler ended" in errors


@pytest.mark.parametrize(("code", "said"), [(None, "1006"), (1011, "1011")])
def test_many_websockets_are_not_waited_for_where_one_was_dropped(monkeypatch, code, said):
    """At once, whatever the scenario waits for."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    many = importlib.import_module("bench_many_websockets")
    scenario = many.Scenario(types.SimpleNamespace(timeout=60), None, 0)
    scenario.step, scenario.deadline, scenario.run = "pinging", float("inf"), Event().wait
    scenario.open.add(type("Dropped", (), {"closed": True, "close_code": code})())
    assert many.watch(scenario, types.SimpleNamespace(poll=lambda: None)) == f"pinging: dropped 1 with {said}"


def test_every_benchmark_is_run_here_and_described():
    """The README says of each what it asks, how to run it and what it does not show."""
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if not path.name.startswith("_")}
    # The first one in test_bench_behind_mongrel2.py.
    assert scripts == {"bench_behind_mongrel2.py", *TINY, "load_http.py", "load_websockets.py"}
    sections = (BENCHMARKS / "README.rst").read_text(encoding="utf-8").split("\n")
    assert scripts == {line for line in sections if line.endswith(".py") and not line.startswith(" ")}
    text = "\n".join(sections)
    for words in ("*Asks:*", "*Run:*", "*Does not show:*"):
        assert text.count(words) == len(scripts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "recv,nothing"], "'nothing' is not one of recv, serve"),
        (["--connections", "5,0"], "numbers are 1 to"),
    ],
)
def test_what_is_not_there_to_be_measured_is_told(monkeypatch, capsys, options, message):
    """Of bench_websocket, before a server is started."""
    assert message in refusal("bench_websocket", options, monkeypatch, capsys)


def test_a_websocket_server_that_hangs_at_its_start_is_given_up_and_ended(monkeypatch, tmp_path):
    """The bench would else wait for its port for ever."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_websocket")
    program = tmp_path / "hangs.py"
    program.write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(bench, "PROGRAM", program)
    monkeypatch.setattr(bench, "START_SECONDS", 0.1)
    before = descendants(os.getpid())
    with pytest.raises(bench.Failed, match=r"recv did not start within 0\.1 s"):
        bench.Row("echo", "recv")
    assert descendants(os.getpid()) == before


def test_a_row_that_fails_is_left_out_and_the_others_go_on(monkeypatch, capsys):
    """Where it does not open, or in the middle of a round; of the others nothing is lost."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_websocket")

    class Echo:
        def __init__(self, row, *_):
            if row.name == "closed":
                raise ConnectionRefusedError("refused")
            self.row = row
            self.left = 2 if row.name == "breaks" else 100

        def run(self, _):
            self.left -= 1
            if not self.left:
                raise bench.Failed("no answer")
            names = ("cpu_us", "front_end_us", "p50_us", "p99_us", "per_second", "client_us")
            return dict.fromkeys(names, 1.0)

        def close(self):
            pass

    monkeypatch.setattr(bench, "Echo", Echo)
    rows = [types.SimpleNamespace(name=name) for name in ("closed", "breaks", "works")]
    options = types.SimpleNamespace(traffic="varied", count=10, rounds=3, opening=[])
    results = bench.echoes(rows, 20, 2, False, options)
    assert (list(results), results["works"]["rounds_us"]) == (["works"], [1.0] * 3)
    assert capsys.readouterr().err == "closed is left out: refused\nbreaks is left out: no answer\n"


@pytest.mark.parametrize(
    ("rows", "chats"),
    [
        (["recv", "serve"], ["greentx"]),
        (["websockets", "recv"], ["greentx", "websockets"]),
        (["gevent-websocket", "websockets-sync"], ["gevent-websocket"]),
    ],
)
def test_only_rows_that_were_asked_for_are_told_to_all(monkeypatch, rows, chats):
    """Both of ours have one chat."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert importlib.import_module("bench_websocket").chats(rows) == chats


def test_websockets_open_as_different_browsers(monkeypatch):
    """Or all as one; the key differs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    handshakes = importlib.import_module("_websocket_clients").handshakes
    found = handshakes("varied", 50)
    for start in ("GET ", "user-agent: ", "cookie: ", "sec-websocket-key: "):
        assert len({line for lines in found for line in lines if line.startswith(start)}) >= 50, start
    assert len(handshakes("same", 50)) == 1


@pytest.mark.parametrize("script", ["load_http.py", "load_websockets.py"])
def test_help_is_there(script):
    """With examples."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, "examples:" in done.stdout, done.stderr) == (0, True, "")


# -- HTTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["-q"], ["-q", "--encoding", "json", "--body-size", "100", "--header", "X-A: b"]])
def test_http_load_of_a_control_socket(handler, options):
    """Exactly so many, in a closed loop; the handler's own count is in the report."""
    result, errors = run("load_http.py", handler, "-n", "5", "-c", "200", *options)
    assert (result["done"], result["errors"], result["opened"], result["via"]) == (200, {}, 5, "control socket")
    assert (result["unclaimed"], result["bad_replies"]) == (0, 0)
    assert result["handler"]["after"]["connection"]["requests"] >= 200
    found = result["latency_ms"]
    assert 0 < found["min"] <= found["p50"] <= found["p99"] <= found["max"]
    assert errors == ""


@pytest.mark.mongrel2
def test_http_load_of_a_url(front):
    """The same over plain sockets, through a real mongrel2."""
    result, _ = run("load_http.py", f"http://{front}/", "-n", "5", "-c", "200", "--body-size", "100")
    assert (result["done"], result["errors"], result["via"]) == (200, {}, "url")
    assert result["request"]["method"] == "POST"


def test_a_rate_is_kept_and_the_duration_ends_it(handler):
    """Two hundred a second for a second and a bit, with a progress line."""
    result, errors = run("load_http.py", handler, "-n", "5", "-r", "200", "-d", "1.2")
    assert (result["loop"], result["done"] + sum(result["errors"].values())) == ("rate", 240)
    assert 100 < result["per_second"] < 220
    assert "1 s: 5 open, " in errors
    assert "p99" in errors


@pytest.mark.mongrel2
@pytest.mark.parametrize("way", ["control", "url"])
def test_connections_that_are_closed_are_made_anew(handler, front, way):
    """An answer that closes is an answer."""
    target = handler if way == "control" else f"http://{front}"
    result, _ = run("load_http.py", target, "-q", "-n", "2", "-c", "20", "--path", "/close")
    assert (result["done"], result["errors"]) == (20, {})


@pytest.mark.mongrel2
@pytest.mark.parametrize("way", ["control", "url"])
@pytest.mark.parametrize(
    ("path", "error"), [("/404", "status 404"), ("/nothing", "closed without an answer"), ("/slow", "timeout")]
)
def test_what_fails_is_counted_by_its_kind(handler, front, way, path, error):
    """Nothing succeeded: the exit status says so."""
    target = handler if way == "control" else f"http://{front}/"
    result, _ = run("load_http.py", target, "-q", "-n", "2", "-c", "4", "-t", "0.3", "--path", path, status=1)
    if error.startswith("closed"):
        assert sum(result["errors"].values()) == 4
        assert all("closed" in name or "answer" in name for name in result["errors"])
    else:
        assert result["errors"] == {error: 4}
    assert (result["done"], result["latency_ms"]) == (0, {})


def test_a_status_can_be_right(handler):
    """A 404 that is wanted."""
    result, _ = run("load_http.py", handler, "-q", "-n", "1", "-c", "3", "--path", "/404", "--status", "404")
    assert result["done"] == 3


def test_ctrl_c_ends_a_load_with_its_report(handler):
    """What was measured until then."""
    command = [sys.executable, str(BENCHMARKS / "load_http.py"), handler, "-n", "2", "-r", "100"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert "1 s:" in line_of(process.stderr)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    result = json.loads(output)
    assert (process.returncode, result["interrupted"], result["done"] > 0) == (0, True, True)


def test_a_handler_that_dies_fails_a_load_that_ends_in_time():
    """Of all that a load does without it, only what was done counts, over the whole time."""
    # Long enough for all three to run at once, though they start one after the other on a busy machine.
    timeout, duration = 0.5, 6
    kinds = (["load_http.py"], ["load_websockets.py"], ["load_websockets.py", "--idle"])
    with running() as ports, contextlib.ExitStack() as stack:
        loads = []
        for script, *options in kinds:
            command = [sys.executable, str(BENCHMARKS / script), ports["control"], *options]
            command += ["-n", "2", "-c", "1000000", "-d", str(duration), "-t", str(timeout)]
            load = subprocess.Popen(
                command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(load)
            stack.callback(load.kill)
            loads.append(load)
        for load in loads:
            assert "1 s:" in line_of(load.stderr)
        ports["process"].kill()
        for load, kind in zip(loads, kinds, strict=True):
            output, errors = load.communicate(timeout=40)
            result = json.loads(output)
            assert load.returncode == 1, (kind, result, errors)
            assert duration <= result["seconds"] < duration + 2 * timeout, kind
            assert (result.get("unclosed", 2) >= 2, bool(result["errors"])) == (True, "--idle" not in kind), result


def test_a_plot_is_drawn_or_the_missing_package_named(handler, tmp_path):
    """Before the load, not after it."""
    file = tmp_path / "plot.png"
    if importlib.util.find_spec("matplotlib"):
        run("load_http.py", handler, "-q", "-n", "2", "-c", "50", "--plot", str(file))
        assert file.read_bytes().startswith(b"\x89PNG")
    else:
        _, errors = run("load_http.py", handler, "--plot", str(file), status=2)
        assert "greentx[bench]" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["192.0.2.1:9997"], "another machine"),
        (["http://192.0.2.1/"], "another machine"),
        (["https://127.0.0.1/"], "no TLS"),
        (["nonsense"], "neither HOST:PORT nor a URL"),
        (["http:///"], "names no host"),
        (["http://[::1/"], "neither HOST:PORT nor a URL"),
        (["127.0.0.1:1", "--ip", "192.0.2.1"], "not a loopback"),
        (["127.0.0.1:1", "-n", "0"], "from 1 to 100000"),
        (["127.0.0.1:1", "-r", "-1"], "above 0"),
        (["127.0.0.1:1", "-d", "1e9"], "at most 86400"),
        (["127.0.0.1:1", "--header", "x"], "NAME:VALUE"),
        (["127.0.0.1:1", "--body-size", "-1"], "--body-size"),
    ],
)
def test_a_slip_in_the_command_line_is_told(monkeypatch, capsys, options, message):
    """Before anything is sent anywhere."""
    assert message in refusal("load_http", options, monkeypatch, capsys)


def test_a_target_that_is_not_there_is_one_line():
    """For a control socket; a URL that refuses is counted."""
    _, errors = run("load_http.py", "127.0.0.1:1", "-t", "0.2", status=1)
    assert errors.count("\n") == 1
    assert "127.0.0.1:1 did not answer" in errors
    result, _ = run("load_http.py", "http://127.0.0.1:1/", "-q", "-n", "2", "-c", "2", status=1)
    assert sum(result["errors"].values()) == 4
    assert result["errors"]["opening: Connection refused"] == 2


# -- WebSockets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--deflate", "--size", "2000"], ["--answer", "any", "--path", "/twice"]])
def test_websocket_load_of_a_control_socket(handler, options):
    """Messages come back, pings are answered, all close properly."""
    result, _ = run("load_websockets.py", handler, "-q", "-n", "10", "-c", "200", *options)
    assert (result["done"], result["errors"], result["opened"]) == (200, {}, 10)
    assert (result["dropped"], result["unclosed"], result["unclaimed"]) == ({}, 0, 0)
    assert result["handler"]["open"]["websockets"] == 10
    assert "bytes_per_connection" in result


@pytest.mark.mongrel2
@pytest.mark.parametrize("options", [[], ["--size", "100000"], ["-r", "400", "--answer", "none"]])
def test_websocket_load_of_a_url(front, options):
    """The same over plain sockets, through a real mongrel2."""
    result, _ = run("load_websockets.py", f"ws://{front}/x", "-q", "-n", "10", "-c", "200", *options)
    assert (result["done"], result["errors"], result["path"]) == (200, {}, "/x")
    assert (result["dropped"], result["unclosed"]) == ({}, 0)


@pytest.mark.mongrel2
@pytest.mark.parametrize("way", ["control", "url"])
def test_idle_websockets_answer_pings(handler, front, way):
    """The handler pings every 0.2 s and drops those that do not answer."""
    target = handler if way == "control" else f"ws://{front}/"
    result, _ = run("load_websockets.py", target, "-q", "-n", "20", "-d", "1", "--idle", "--open-rate", "400")
    assert (result["opened"], result["errors"], result["dropped"], result["unclosed"]) == (20, {}, {}, 0)
    assert result["pings"] >= 40


@pytest.mark.mongrel2
@pytest.mark.parametrize("way", ["control", "url"])
def test_who_is_dropped_is_counted_by_close_code(handler, front, way):
    """The connection is opened again for the next message."""
    target = handler if way == "control" else f"ws://{front}"
    result, _ = run("load_websockets.py", target, "-q", "-n", "2", "-c", "4", "--path", "/bye", status=1)
    assert result["dropped"] == {"4000": 4}
    assert result["errors"] == {"ended with 4000": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ws://127.0.0.1:1/", "--deflate"], "control socket only"),
        (["127.0.0.1:1", "--size", "1"], "--size"),
        (["http://127.0.0.1:1/"], "the scheme is ws"),
    ],
)
def test_a_slip_with_websockets_is_told(monkeypatch, capsys, options, message):
    """Before anything is sent anywhere."""
    assert message in refusal("load_websockets", options, monkeypatch, capsys)
