"""The benchmark behind a real mongrel2: all rows of greentx run, all that is sent arrives, and all is ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from gevent.server import StreamServer

import greentx

ROOT = Path(greentx.__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import _traffic  # noqa: E402 - found by the path set above
import bench_behind_mongrel2 as bench  # noqa: E402 - found by the path set above
from _wrk import Wrk, find_wrk  # noqa: E402 - found by the path set above

needs_wrk = pytest.mark.skipif(not find_wrk(), reason=needs.skipped("wrk"))


def start(folder, *options):
    """Start the benchmark, with a temporary folder of its own."""
    return subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "bench_behind_mongrel2.py"), "--connections", "2", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result_of(folder, *options):
    """Run it to its end; return the JSON of its last line."""
    with start(folder, "--rounds", "1", "--seconds", "0.1", *options) as process:
        try:
            output, errors = process.communicate(timeout=100)
        finally:
            process.terminate()
    assert process.returncode == 0, (output, errors)
    return json.loads(output.splitlines()[-1])


@needs_wrk
@pytest.mark.mongrel2
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("rows", "options", "flows"),
    [
        ("plain,recv-method,recv-headers,serve,wsgi,edge,edge-wsgi", ("--flow-control", "off"), [False]),
        ("plain,serve", ("--flow-control", "both", "--traffic", "same", "--protocol", "json"), [False, True]),
    ],
)
def test_each_row_of_ours_answers_every_request(tmp_path, rows, options, flows):
    """With hardly any load; the figures mean nothing then."""
    result = result_of(tmp_path, "--rows", rows, *options)
    assert result["benchmark"] == "behind_mongrel2"
    assert {"python", "machine", "commit", "mongrel2", "wrk", "goals"} <= result.keys()
    found = [(one["row"], one["flow_control"], one["connections"]) for one in result["results"]]
    assert found == [(row, flow, 2) for row in rows.split(",") for flow in flows]
    for one in result["results"]:
        assert (one["bad_status"], one["errors"]) == (0, 0), one
        assert min(one["cpu_us"], one["front_us"], one["per_second"], one["p50_ms"]) > 0, one
        assert len(one["cpu_to_plain"]) == len(one["rate_to_plain"]) == 1, one
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_where_there_is_no_wrk(tmp_path, monkeypatch):
    """Which is said, and no failure: the other benchmarks go on."""
    monkeypatch.setenv("PATH", "/nowhere")
    with start(tmp_path) as process:
        output, errors = process.communicate(timeout=50)
    assert (process.returncode, json.loads(output)["results"]) == (0, [])
    assert "wrk is missing" in errors


@needs_wrk
@pytest.mark.mongrel2
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_that_was_started(tmp_path, number):
    """In the middle of a load; the exit status is that of a program that the signal ended."""
    with start(tmp_path, "--rows", "plain", "--seconds", "60") as process, contextlib.ExitStack() as stack:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "plain runs, and answers as it should\n"
            started = children(process.pid)
            assert len(started) >= 2  # mongrel2 and the handler
            ends = []
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    ends.append(os.pidfd_open(pid))
                    stack.callback(os.close, ends[-1])
            process.send_signal(number)
            process.wait(30)
        finally:
            process.kill()
        # A wrk that was just being started is killed by the kernel, a moment after the end of its parent.
        assert all(select.select([end], [], [], 40)[0] for end in ends)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def children(pid):
    """The processes that a process has started."""
    return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]


@needs_wrk
def test_wrk_plays_requests_in_order_as_they_are_and_counts_what_failed(tmp_path):
    """From the one that was asked for, round and round, with their bodies and with headers that come twice."""
    sent = _traffic.requests(count=8)
    right = []

    def answer(sock, _address):
        with sock.makefile("rb") as stream:
            for number in itertools.count(5):
                expected = sent[number % len(sent)].raw()
                found = b""
                with contextlib.suppress(ConnectionResetError):
                    found = stream.read(len(expected))
                if len(found) < len(expected):
                    break  # wrk has gone; its first connection only tries whether somebody listens
                right.append(found == expected)
                with contextlib.suppress(OSError):
                    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        report = Wrk(str(find_wrk()), sent, str(tmp_path)).run(server.server_port, 1, 0.1, first=5)
    finally:
        server.stop()
    assert right == [True] * len(right)
    assert len(right) >= report["requests"] == report["bad_status"] > 0


def test_a_round_is_compared_with_the_same_round_of_the_other_row():
    """Of the same number of connections and, where there is a mongrel2, of the same flow control."""

    def runs(*figures):
        return [bench.Run(figure, 0.0, 0.0, 1.0, 1.0, 1.0, 0, 0) for figure in figures]

    ours, alone = bench.Case("wsgi", True, 64), bench.Case("pywsgi", None, 64)
    results = {
        bench.Case("plain", False, 64): runs(1.0, 1.0),
        bench.Case("plain", True, 64): runs(2.0, 4.0),
        bench.Case("plain", True, 1): runs(9.0, 9.0),
        ours: runs(6.0, 8.0),
        alone: runs(12.0, 32.0),
    }

    def ratios(other, case):
        return bench.ratios_to(other, results, case, lambda run: run.cpu_us)

    assert ratios("plain", ours) == [2.0, 3.0]
    assert ratios("pywsgi", ours) == [0.25, 0.5]
    assert ratios("plain", alone) == [12.0, 32.0]
    assert ratios("granian", ours) == []


def test_goals_are_judged_by_the_median_of_the_rounds(capsys):
    """One that is missed is said, and is no error; rows that were not measured are not judged."""
    results = {
        bench.Case(row, False, 64): [bench.Run(figure, 0.0, 0.0, rate, 1.0, 1.0, 0, 0) for figure in figures]
        for row, figures, rate in [("plain", (1.0, 1.0, 1.0), 10.0), ("serve", (2.0, 9.0, 2.5), 5.0)]
    }
    results[bench.Case("wsgi", False, 64)] = [
        bench.Run(1.0, 0.0, 0.0, 9.0, p50, p99, 0, 0) for p50, p99 in [(1.0, 9.0), (2.0, 5.0), (2.0, 7.0)]
    ]
    judged = {one["goal"]: one["met"] for one in bench.check_goals(results)}
    assert judged == {
        "serve / plain, CPU <= 2.8": True,
        "serve / plain, requests a second >= 0.75": False,
        "serve, p99 / p50 <= 3.0": True,
        "wsgi / plain, CPU <= 3.0": True,
        "wsgi / plain, requests a second >= 0.75": True,
        "wsgi, p99 / p50 <= 3.0": False,
    }
    assert capsys.readouterr().out.count("missed") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "plain,nginx"], "'nginx' is not one of plain, recv-method"),
        (["--connections", "0"], "1 to 1000"),
        (["--connections", "some"], "invalid numbers value"),
        (["--rounds", "0"], "at least 1"),
        (["--seconds", "0"], "0.05 to 600"),
    ],
)
def test_a_mistake_in_the_command_line_is_told(monkeypatch, capsys, options, message):
    """Before anything is started."""
    monkeypatch.setattr(sys, "argv", ["bench_behind_mongrel2.py", *options])
    with pytest.raises(SystemExit) as raised:
        bench.arguments()
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
