"""A relay and Nodes in processes of their own, behind a real Mongrel2: what becomes of each request."""

from __future__ import annotations

import contextlib
import re
import signal
from collections import Counter
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event
from http_rig import Browser
from relay_rig import Cluster, clients

from greentx import GreentxError

pytestmark = [pytest.mark.mongrel2, pytest.mark.timeout(120)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One that runs, without Nodes."""
    with Cluster() as one:
        yield one


def test_requests_go_to_nodes_and_are_counted(cluster):
    """Each client gets its own answers, from one Node as long as its connection lasts."""
    for name in ("a", "b"):
        cluster.start_node(name)
    with clients(cluster, 8) as them:
        them.wait_for(400)
        outcomes = them.stop()
    assert set(outcomes) == {"ok"} and not them.wrong
    assert set(them.by_node) == {"a", "b"}
    status = cluster.status()
    assert status["forwarded"] >= 400
    assert [status[name] for name in ("retried", "bad_gateway", "unavailable", "closed")] == [0, 0, 0, 0]


FLOW_CONTROL = {"download.flow_control": 1}


@pytest.mark.parametrize(("delay", "count"), [(0.002, 50), (0.3, 12)])
def test_killed_nodes_cost_no_request_of_a_safe_method(delay, count):
    """Where Mongrel2 tells what it wrote: no connection ends, no answer is lost, none comes twice."""
    with Cluster(settings=FLOW_CONTROL) as cluster:
        for name in ("a", "b", "c"):
            cluster.start_node(name, delay=delay)
        with clients(cluster, 8) as them:
            for name in ("a", "b", "c", "a"):
                them.wait_for(count)
                cluster.wait_until_busy(name)
                cluster.kill_node(name)
                # A request over which two Nodes died goes to no third one.
                cluster.wait_until_settled(name)
                them.wait_for(count)
                cluster.start_node(name, delay=delay)
            them.wait_for(count)
            outcomes = them.stop()
        assert not them.wrong
        assert set(outcomes) == {"ok"}, outcomes
        status = cluster.status()
        assert status["retried"] > 0 and status["closed"] == 0


def test_large_answers_of_killed_nodes_end_or_are_whole():
    """In the middle of one its connection ends; nobody waits for the rest, nobody gets another's."""
    outcomes: Counter[str] = Counter()
    stop = Event()

    def browse(cluster: Cluster, size: int) -> None:
        while not stop.is_set():
            try:
                browser = Browser(cluster.mongrel2, timeout=20)
            except OSError:
                outcomes["refused"] += 1
                gevent.sleep(0.1)
                continue
            with browser:
                while not stop.is_set():
                    try:
                        outcomes["ok" if browser.get(f"/?size={size}").body == b"x" * size else "wrong"] += 1
                    except TimeoutError:
                        outcomes["silent"] += 1
                        break
                    except (OSError, GreentxError):
                        outcomes["closed"] += 1
                        break

    with Cluster(settings=FLOW_CONTROL) as cluster:
        for name in ("a", "b"):
            cluster.start_node(name)
        loops = [gevent.spawn(browse, cluster, 300_000 + number) for number in range(8)]
        for name in ("a", "b", "a"):
            done = outcomes["ok"]
            cluster.kill_node(name)
            cluster.start_node(name)
            with gevent.Timeout(30):
                while outcomes["ok"] < done + 50:
                    gevent.sleep(0.005)  # between two looks
        stop.set()
        gevent.joinall(loops, timeout=30, raise_error=True)
    assert set(outcomes) <= {"ok", "closed"} and outcomes["closed"] <= 24, outcomes


def test_without_flow_control_a_killed_node_may_cost_connections(cluster):
    """Those whose answers it may have written, or not; never silence, never another's answer."""
    for name in ("a", "b", "c"):
        cluster.start_node(name, delay=0.005)
    with clients(cluster, 8) as them:
        for name in ("a", "b"):
            them.wait_for(100)
            cluster.wait_until_busy(name)
            cluster.kill_node(name)
            cluster.wait_until_settled(name)
        them.wait_for(100)
        outcomes = them.stop()
    assert not them.wrong
    assert set(outcomes) <= {"ok", "closed"} and outcomes["closed"] <= 16, outcomes
    assert cluster.status()["retried"] > 0


def test_a_killed_node_answers_each_post_502_or_ends_its_connection(cluster):
    """Never silence, never another's answer."""
    for name in ("a", "b"):
        cluster.start_node(name, delay=0.05)
    with clients(cluster, 8, method="POST") as them:
        them.wait_for(50)
        cluster.wait_until_busy("a")
        cluster.kill_node("a")
        them.wait_for(100)
        outcomes = them.stop()
    assert not them.wrong
    assert outcomes["502"] > 0
    assert set(outcomes) <= {"ok", "502", "closed"}, outcomes


def test_an_answer_that_a_killed_node_began_is_cut_off(cluster):
    """Its browser sees the end of its connection, behind what there is."""
    cluster.start_node("a")
    with Browser(cluster.mongrel2) as browser:
        browser.ask("/?half=1")
        assert browser.read(45).endswith(b"half")
        cluster.kill_node("a")
        assert browser.at_end()
    assert cluster.status()["closed"] == 1


def test_a_stopped_node_gives_no_answer_to_a_stranger(cluster):
    """What it may have begun to answer ends with its connection; when it runs again it drops what it had."""
    for name in ("a", "b"):
        cluster.start_node(name, delay=0.01)
    with clients(cluster, 8) as them:
        them.wait_for(50)
        cluster.nodes["a"].send_signal(signal.SIGSTOP)
        with gevent.Timeout(20):
            while len(cluster.status()["nodes"]) > 1:
                gevent.sleep(0.05)
        them.wait_for(100)
        cluster.nodes["a"].send_signal(signal.SIGCONT)
        with gevent.Timeout(20):
            while len(cluster.status()["nodes"]) < 2:
                gevent.sleep(0.05)
        them.wait_for(200)
        outcomes = them.stop()
    assert not them.wrong
    assert set(outcomes) <= {"ok", "closed"} and outcomes["closed"] <= 8, outcomes


def test_a_node_that_stood_still_for_a_moment_goes_on(cluster):
    """For less than its connection lasts without a sign of it: nothing is lost, nothing is answered twice."""
    cluster.start_node("a", delay=0.01)
    with clients(cluster, 8) as them:
        for _ in range(3):
            them.wait_for(50)
            cluster.nodes["a"].send_signal(signal.SIGSTOP)
            gevent.sleep(0.5)  # it stands still for this long
            cluster.nodes["a"].send_signal(signal.SIGCONT)
        them.wait_for(100)
        outcomes = them.stop()
    assert set(outcomes) == {"ok"} and not them.wrong
    assert cluster.status()["retried"] == 0


def test_a_slow_node_gets_fewer_new_connections(cluster):
    """One that is ten times slower has more open, so that others are chosen."""
    cluster.start_node("slow", delay=0.1)
    cluster.start_node("fast", delay=0.01)
    counts = {"slow": 0, "fast": 0}

    def browse() -> None:
        for _ in range(30):
            with Browser(cluster.mongrel2) as browser:
                counts[browser.get("/x").body.split()[0].decode()] += 1

    gevent.joinall([gevent.spawn(browse) for _ in range(8)], timeout=60, raise_error=True)
    assert sum(counts.values()) == 240
    assert counts["fast"] > 3 * counts["slow"], counts


def test_pipelined_requests_stay_in_order(cluster):
    """Over one connection each, of several clients at once."""
    for name in ("a", "b"):
        cluster.start_node(name)

    def browse() -> None:
        paths = [f"/{number}" for number in range(100)]
        with Browser(cluster.mongrel2) as browser:
            browser.send("".join(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n" for path in paths))
            bodies = [browser.receive().body.decode() for _ in paths]
        assert [body.split()[2] for body in bodies] == paths
        assert len({body.split()[0] for body in bodies}) == 1

    gevent.joinall([gevent.spawn(browse) for _ in range(6)], timeout=60, raise_error=True)


def test_a_rolling_restart_fails_no_request(cluster):
    """New Nodes first, then the old ones leave in order, under load."""
    for name in ("a1", "b1", "c1"):
        cluster.start_node(name, delay=0.005)
    with clients(cluster, 8) as them, clients(cluster, 4, method="POST") as posts:
        them.wait_for(100)
        for letter in "abc":
            cluster.start_node(f"{letter}2", delay=0.005)
            cluster.end_node(f"{letter}1")
            them.wait_for(50)
        outcomes, posted = them.stop(), posts.stop()
    assert set(outcomes) == {"ok"} and set(posted) == {"ok"}, (outcomes, posted)
    assert not them.wrong and not posts.wrong
    status = cluster.status()
    assert [status[name] for name in ("retried", "bad_gateway", "unavailable", "closed")] == [0, 0, 0, 0]
    assert {one["name"] for one in status["nodes"]} == {"a2", "b2", "c2"}


def test_without_nodes_requests_wait_and_are_then_answered(cluster):
    """Whoever comes first gets them; nobody waits forever."""
    with Browser(cluster.mongrel2, timeout=30) as browser:
        browser.ask("/early")
        gevent.sleep(0.2)  # what must not happen has no event
        cluster.start_node("a")
        assert re.match(rb"a GET /early", browser.receive().body)


def test_with_a_relay_over_ipc_a_killed_node_is_replaced_at_once(tmp_path):
    """The end of a connection is the end of a process there, so that no lease has to run out."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(settings=FLOW_CONTROL, node_addr=f"ipc://{tmp_path}/nodes"))
        for name in ("a", "b"):
            cluster.start_node(name, delay=0.05)
        them = stack.enter_context(clients(cluster, 8))
        them.wait_for(50)
        cluster.wait_until_busy("a")
        cluster.kill_node("a")
        them.wait_for(100)
        assert set(them.stop()) == {"ok"} and not them.wrong
        assert cluster.status()["retried"] > 0


@pytest.mark.parametrize("credits_on", [0, 1])
def test_large_answers_arrive_whole(credits_on):
    """What Mongrel2 says of what it wrote, and of what it received, reaches the Node that it concerns."""
    with Cluster(settings={"download.flow_control": credits_on}) as cluster:
        for name in ("a", "b"):
            cluster.start_node(name)

        def browse() -> None:
            with Browser(cluster.mongrel2) as browser:
                for size in (10, 3_000_000, 102_401, 10):
                    assert len(browser.get(f"/?size={size}").body) == size

        gevent.joinall([gevent.spawn(browse) for _ in range(4)], timeout=60, raise_error=True)
        with Browser(cluster.mongrel2) as browser:
            for _ in range(60):
                browser.ask("/?size=200")
            assert [len(browser.receive().body) for _ in range(60)] == [200] * 60


def test_all_pieces_of_a_streamed_body_go_to_one_node():
    """And what is granted comes from there."""
    with Cluster(settings={"upload.stream": 1, "limits.content_length": 20480}) as cluster:
        for name in ("a", "b"):
            cluster.start_node(name)

        def browse(size: int) -> None:
            with Browser(cluster.mongrel2) as browser:
                for _ in range(2):
                    browser.ask("/", method="POST", body=b"x" * size)
                    assert browser.receive().body.split()[1:] == [b"streamed", b"%d" % size]

        gevent.joinall([gevent.spawn(browse, 300_000 + number) for number in range(6)], timeout=60, raise_error=True)


def test_a_stored_body_is_read_by_a_node_and_deleted(tmp_path):
    """Its file is the Node's, once that has it."""
    settings = {"upload.temp_store": f"{tmp_path}/body.XXXXXX", "limits.content_length": 20480}
    with Cluster(settings=settings) as cluster:
        cluster.start_node("a")
        with Browser(cluster.mongrel2) as browser:
            for size in (300_000, 300_001):
                browser.ask("/", method="POST", body=b"x" * size)
                assert browser.receive().body == b"a stored %d" % size
        with gevent.Timeout(10):
            while list(tmp_path.iterdir()):
                gevent.sleep(0.01)


def test_names_of_files_that_a_client_made_up_are_believed_by_nobody(cluster, tmp_path):
    """Also where the relay forwards a message as it came."""
    (tmp_path / "secret").write_text("secret")
    name = f"{tmp_path}/secret"
    cluster.start_node("a")
    with Browser(cluster.mongrel2) as browser:
        answer = browser.get("/", f"X-Mongrel2-Upload-Start: {name}", f"X-Mongrel2-Upload-Done: {name}")
        assert answer.body.startswith(b"a GET /")
    assert (tmp_path / "secret").exists()
