"""Nodes that are cut off from a server, and not from their relay: the relay finds out, and leaves nobody waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from relay_chain import SENDER, BareNode, Chain, say, wait_until

from greentx.errors import RemoteProtocolError
from greentx.relay import ways as ways_module
from greentx.relay.forwarded import Forwarded
from greentx.relay.messages import Hello
from greentx.relay.session import NodeSession
from greentx.relay.sticky import Bound, Sticky
from greentx.relay.ways import CLOSE_ROUNDS, Way, Ways


@pytest.fixture
def chain(monkeypatch):
    """A chain without Nodes, with short rounds."""
    monkeypatch.setattr(ways_module, "ROUND_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:
        chain = Chain(stack)
        chain.relay_all()
        yield chain


@pytest.fixture
def patient(monkeypatch):
    """Nothing is closed, however long a Node is cut off."""
    monkeypatch.setattr(ways_module, "CLOSE_ROUNDS", 1_000_000)


class Cut:
    """The link from a transceiver to the server is cut: what is sent is kept, as the system keeps it."""

    def __init__(self, transceiver) -> None:
        self._pipe = transceiver.connections[SENDER].link.writer.pipe
        self._send = self._pipe.send_now
        self.kept: list[tuple[bytes, int]] = []
        self._pipe.send_now = lambda message, flags: self.kept.append((message, flags))

    def heal(self) -> None:
        """What was kept arrives, in its order, and all that comes."""
        for message, flags in self.kept:
            self._send(message, flags)
        self._pipe.send_now = self._send


def cut_off(chain):
    """Return the names of the Nodes that are known to be cut off from the server."""
    return {one["name"] for one in chain.relay.status()["nodes"] if one["cut_off"]}


def cut_with_an_answer(chain, headers=None):
    """Have a Node be cut off whose answer does not arrive; return it, its cut, and the client that waits."""
    node = chain.node(say("a"), name="a")
    client = chain.client()
    client.send("/1")
    assert client.recv(5000).body == b"a: GET /1 "
    cut = Cut(node)
    client.send("/2", headers)
    wait_until(lambda: any(b"GET /2" in message for message, _ in cut.kept) and chain.relay.open == 0)
    return node, cut, client


def test_what_a_node_that_is_cut_off_has_answered_is_closed(chain):
    """What is new goes to others; with the link the Node is back, and its late answer is nobody's."""
    _, cut, client = cut_with_an_answer(chain)
    chain.node(say("b"), name="b")
    wait_until(lambda: cut_off(chain) == {"a"})
    for _ in range(3):
        other = chain.client()
        other.send("/")
        assert other.recv(10_000).body == b"b: GET / "
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(10_000)
    assert chain.relay.status()["closed"] == 1
    cut.heal()
    wait_until(lambda: not cut_off(chain) and all(one["ready"] for one in chain.relay.status()["nodes"]))
    assert chain.relay.status()["closed"] == 1


def test_a_connection_that_was_to_end_with_the_answer_is_closed_too(chain):
    """Though nothing more is expected of it."""
    _, _, client = cut_with_an_answer(chain, {"Connection": "close"})
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(10_000)


@pytest.mark.usefixtures("patient")
def test_a_short_cut_delays_what_was_answered_and_closes_nothing(chain):
    """What is pipelined behind such an answer stays with its Node: another one's answer would overtake it."""
    _, cut, client = cut_with_an_answer(chain)
    chain.node(say("b"), name="b")
    wait_until(lambda: cut_off(chain) == {"a"})
    client.send("/3")
    wait_until(lambda: any(b"GET /3" in message for message, _ in cut.kept))
    cut.heal()
    assert [client.recv(10_000).body for _ in range(2)] == [b"a: GET /2 ", b"a: GET /3 "]
    wait_until(lambda: not cut_off(chain))
    assert chain.relay.status()["closed"] == 0


@pytest.mark.usefixtures("patient")
def test_what_a_node_that_is_cut_off_has_answered_is_closed_as_it_goes(chain):
    """Whatever the system still sends: nobody would hear whether that arrived."""
    node, _, client = cut_with_an_answer(chain)
    wait_until(lambda: cut_off(chain) == {"a"})
    node.link.stop(0)
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(10_000)


@pytest.mark.usefixtures("patient")
def test_a_node_that_connects_anew_has_lost_what_it_had_answered(chain):
    """Its connection to the server took that with it."""
    node, _, client = cut_with_an_answer(chain)
    wait_until(lambda: cut_off(chain) == {"a"})
    [session] = chain.relay.nodes
    node.link.tell(b"ready " + chain.relay.words.of(chain.api.connections[SENDER]).encode())
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(10_000)
    wait_until(lambda: not session.open)


def test_a_server_that_stands_still_cuts_off_nobody(chain):
    """It does not hear the relay either."""
    node = chain.node(say("a"), name="a")
    cuts = [Cut(chain.api), Cut(node)]
    client = chain.client()
    client.send("/1")
    # Each takes some rounds, as the one before is waited for.
    wait_until(lambda: len(cuts[0].kept) >= 2 + CLOSE_ROUNDS // 4)
    assert not cut_off(chain)
    for one in cuts:
        one.heal()
    assert client.recv(10_000).body == b"a: GET /1 "
    assert chain.relay.status()["closed"] == 0


def test_a_node_that_stands_still_is_not_cut_off(chain):
    """It has not received the question."""
    bare = BareNode(chain)
    for _ in range(CLOSE_ROUNDS + 2):
        bare.next(b"prove")
    assert not cut_off(chain)
    # It goes on, and none of its notices comes.
    while not cut_off(chain):
        bare.say(b"received 1000 1000\n")
        bare.next(b"prove")


def test_all_is_forgotten_with_the_server(chain):
    """The next one's life has another word."""
    cut_with_an_answer(chain)
    wait_until(lambda: cut_off(chain) == {"a"})
    chain.relay.lost(chain.api.connections[SENDER])
    assert not cut_off(chain)


# -- what decides ------------------------------------------------------------------------------------------------------


def way_after(steps):
    """Return a way after asked numbers, notices, and rounds with what was received; and what the last round said."""
    way, missed = Way(), 0
    for step in steps.split():
        if step.startswith("ask"):
            way.ask(step[3:], float(step[3:]), int(step[3:]))
        elif step.startswith("notice"):
            way.arrived(step[6:])
        else:
            missed = way.end_round(int(step.removeprefix("round")))
    return way, missed


@pytest.mark.parametrize(
    ("steps", "missed", "proved"),
    [
        ("round9", 0, 0),
        ("ask1 notice1 round9", 0, 1),
        ("ask1 round9", 1, 0),
        ("ask1 round0", 0, 0),
        ("ask1 round9 ask2 round1 ask3 round9", 2, 0),
        ("ask1 round9 ask2 round9 notice1 round9", 1, 1),
        ("ask1 round9 ask2 round9 notice2 round9", 0, 2),
        ("ask1 ask2 notice2 notice1 round9", 0, 2),
        ("ask1 round9 notice7 round9", 2, 0),
        (" ".join(f"ask{one} round99" for one in range(1, 21)) + " notice1 round99", 21, 0),
        (" ".join(f"ask{one} round99" for one in range(1, 21)) + " notice11 round99", 1, 11),
    ],
)
def test_rounds_without_a_notice_are_counted(steps, missed, proved):
    """Those in which the Node has the question; a notice says that all before it has arrived, too."""
    way, last = way_after(steps)
    assert (last, way.proved) == (missed, proved)


class Link:
    """Stands in for a connection set."""

    def __init__(self, sender: str, link: object) -> None:
        self.sender = sender
        self.link = link


class Rounds:
    """The ways of one Node to one server that is there, whose rounds end on demand; no I/O.

    Attributes:
        closed: The browser connections that were closed, in order.
    """

    open = True

    def __init__(self) -> None:
        self.gone: list[Callable[[NodeSession], object]] = []
        self.closed: list[str] = []
        self.session = NodeSession(b"n", Hello("n", 1), 0.0)
        self.session.is_ready("life")
        flow = SimpleNamespace(control=SimpleNamespace(shared=False, announced=False))
        writer = SimpleNamespace(flow=flow, send_to_nobody=self._give_notice)
        self.connection: Any = Link(sender=SENDER, link=SimpleNamespace(writer=writer, life=None))
        self.sticky = Sticky()
        itself: Any = self
        self.ways = Ways(
            itself,
            itself,
            self.sticky,
            connections=lambda: [self.connection],
            word=lambda connection: "life",
            close=lambda connection, conn_id, why: self.closed.append(conn_id),
        )

    def __iter__(self) -> Iterator[NodeSession]:
        return iter(() if self.session.over else (self.session,))

    def timer(self, after: float, repeat: float) -> Rounds:
        """Be the timer, too."""
        return self

    def start(self, end_round: Callable[[], object]) -> None:
        """Keep what ends a round."""
        self._end_round = end_round

    def send(self, session: NodeSession, head: bytes) -> None:
        """The question reaches the Node, and no notice comes."""

    def _give_notice(self, number: str) -> None:
        self._asked = number

    def end(self, count: int) -> None:
        """End so many rounds; the server gives the relay its notices."""
        for _ in range(count):
            self._end_round()
            self.ways.arrived(self._asked)


def test_a_session_that_is_over_has_no_way():
    """What it said last may be read behind its end: there is nobody to ask, and nothing to be closed."""
    rounds = Rounds()
    rounds.end(1)
    rounds.session.over = True
    for call in rounds.gone:
        call(rounds.session)
    rounds.ways.parted(rounds.session, Forwarded(rounds.connection, "7", b"", safe=True), 5.0)
    rounds.end(2 * CLOSE_ROUNDS)
    assert rounds.closed == []


def test_a_node_that_is_cut_off_is_looked_at_in_every_tenth_round():
    """What it said meanwhile is closed then."""
    rounds = Rounds()
    bound = rounds.sticky.bind(rounds.connection, "7", rounds.session)
    bound.done_at = 5.0
    rounds.end(CLOSE_ROUNDS)
    assert rounds.closed == []
    rounds.end(CLOSE_ROUNDS)
    assert rounds.closed == ["7"]
    rounds.end(CLOSE_ROUNDS)
    assert rounds.closed == ["7", "7"]


def test_what_is_in_doubt_is_closed_in_every_tenth_round():
    """Not in each: it is looked for among all browser connections."""
    way = Way()
    way.ask("1", 1.0, 1)
    assert [number for number in range(1, 35) if way.end_round(9) and way.is_due()] == [10, 20, 30]
    # The Node has not received the next question.
    way.ask("2", 2.0, 20)
    assert (way.end_round(9), way.is_due()) == (34, False)


def test_where_nothing_was_answered_nothing_is_in_doubt():
    """Also where nothing of the Node's has ever arrived."""
    assert not Way().doubts(Bound(NodeSession(b"n", Hello("n", 1), 0.0)), tells=False)


def test_what_was_said_before_the_question_is_not_in_doubt():
    """And what the server wrote is not, where it says so."""
    way, _ = way_after("ask5 notice5")
    bound = Bound(NodeSession(b"n", Hello("n", 1), 0.0))
    for done_at, tells, doubted in ((4.0, False, False), (6.0, False, True), (6.0, True, False)):
        bound.done_at = done_at
        assert way.doubts(bound, tells=tells) is doubted


def test_of_ended_connections_those_are_kept_that_are_in_doubt():
    """Until the question behind them is proved."""
    way = Way()
    way.parted += [(1.0, "1"), (2.0, "2"), (3.0, "3")]
    way.ask("2", 2.0, 1)
    way.arrived("2")
    assert list(way.parted) == [(3.0, "3")]
