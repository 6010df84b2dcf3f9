"""WebSockets of a real Mongrel2 whose applications are on Nodes that come, go and die: each message is counted."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import gevent
import pytest
from relay_sockets_rig import FLOOD_BYTES, Browsers, Cluster
from websocket_peer import Peer

pytestmark = [pytest.mark.mongrel2, pytest.mark.timeout(180)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One that runs, without Nodes."""
    with Cluster() as one:
        yield one


@pytest.mark.parametrize("slow", [0.0, 0.005])
def test_each_is_at_one_node_in_order_and_they_are_spread(cluster: Cluster, slow: float) -> None:
    """300 with 10 frames each, behind three Nodes, one of which may be slow."""
    for place, name in enumerate(("a", "b", "c")):
        cluster.start_node(name, delay=10 * slow if place == 0 else slow)
    with Browsers(cluster.mongrel2, 300) as browsers:
        for _ in range(10):
            for one in browsers.all:
                one.say()
        browsers.wait_for(lambda one: not one.lost, 60)
        assert all(len(one.nodes) == 1 and list(one.answers) == list(range(1, 11)) for one in browsers.all)
        found = browsers.summary()
        assert (found["closed"], found["doubled"], found["redelivered"], found["faults"]) == (0, 0, 0, [])
        by_node = browsers.by_node()
    assert set(by_node) == {"a", "b", "c"}
    assert all(80 <= count <= 120 for count in by_node.values()), by_node


def test_a_rolling_restart_is_not_noticed(cluster: Cluster) -> None:
    """New Nodes first, then the old ones leave one by one: nothing closed, lost, doubled or given again."""
    for name in ("a", "b", "c"):
        cluster.start_node(name)
    with Browsers(cluster.mongrel2, 60) as browsers:
        browsers.talk(0.2)
        browsers.wait_for(lambda one: len(one.answers) >= 3)
        for name in ("d", "e", "f"):
            cluster.start_node(name)
        for name in ("a", "b", "c"):
            cluster.end_node(name)
        gevent.sleep(1)  # some more rounds
        browsers.stop()
        found = browsers.summary()
        assert (found["closed"], found["lost"], found["doubled"], found["redelivered"], found["faults"]) == (
            0,
            0,
            0,
            0,
            [],
        )
        assert set(browsers.by_node()) <= {"d", "e", "f"}
        assert found["said"] >= 60 * 5
    status = cluster.status()["websockets"]
    assert status["adopted"] >= 60 and status["redelivered"] == 0


def test_after_a_kill_only_what_was_in_dead_hands_comes_again(cluster: Cluster) -> None:
    """None is lost or closed, and the state is as it was."""
    for name in ("a", "b", "c"):
        cluster.start_node(name)
    with Browsers(cluster.mongrel2, 60) as browsers:
        browsers.talk(0.2)
        browsers.wait_for(lambda one: len(one.answers) >= 3)
        at_a = browsers.by_node()["a"]
        assert at_a >= 16
        cluster.kill_node("a")
        browsers.wait_for(lambda one: one.nodes[-1] != "a")
        gevent.sleep(1)  # some more rounds
        browsers.stop()
        found = browsers.summary()
        assert (found["closed"], found["lost"], found["doubled"], found["faults"]) == (0, 0, 0, [])
        # One message of each was under way at the most, five times a second.
        assert found["redelivered"] <= at_a
    assert cluster.status()["websockets"]["adopted"] == at_a


def test_a_node_that_stands_still_loses_its_websockets(cluster: Cluster) -> None:
    """Another one goes on with them; what it says when it runs again reaches nobody."""
    for name in ("a", "b"):
        cluster.start_node(name)
    with Browsers(cluster.mongrel2, 20) as browsers:
        browsers.talk(0.2)
        browsers.wait_for(lambda one: len(one.answers) >= 3)
        cluster.nodes["a"].send_signal(signal.SIGSTOP)
        browsers.wait_for(lambda one: one.nodes[-1] == "b")
        cluster.nodes["a"].send_signal(signal.SIGCONT)
        gevent.sleep(1)  # some more rounds
        browsers.stop()
        found = browsers.summary()
        assert (found["closed"], found["lost"], found["doubled"], found["faults"]) == (0, 0, 0, [])


def test_one_that_does_not_read_holds_up_nobody() -> None:
    """Its Node's ``send()`` waits, others are answered; when it reads it gets all of it, in order."""
    with Cluster(settings={"download.flow_control": 1}) as cluster:
        cluster.start_node("a")
        slow = Peer(cluster.mongrel2.port, "/flood")
        slow.head()
        slow.send("400")
        with Browsers(cluster.mongrel2, 5) as browsers:
            browsers.talk(0.1)
            browsers.wait_for(lambda one: len(one.answers) >= 10)
            browsers.stop()
            assert browsers.summary()["closed"] == 0
        for number in range(400):
            assert slow.frame().payload == b"%d " % number + b"x" * FLOOD_BYTES
        assert slow.message() == "done"
        slow.sock.close()


def test_messages_wait_while_no_node_is_there(cluster: Cluster) -> None:
    """The only one is restarted: those who wait are answered by the next."""
    cluster.start_node("a")
    with Browsers(cluster.mongrel2, 30) as browsers:
        browsers.talk(0.2)
        browsers.wait_for(lambda one: len(one.answers) >= 2)
        cluster.end_node("a")
        gevent.sleep(0.5)  # in which each says something to nobody
        cluster.start_node("b")
        browsers.stop()
        found = browsers.summary()
        assert (found["closed"], found["lost"], found["doubled"], found["redelivered"], found["faults"]) == (
            0,
            0,
            0,
            0,
            [],
        )
        assert set(browsers.by_node()) == {"b"}
