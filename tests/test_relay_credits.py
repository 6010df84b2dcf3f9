"""With ``download.flow_control``: what a server wrote decides what becomes of the requests of a Node that has gone."""

from __future__ import annotations

import contextlib

import pytest
from relay_chain import SENDER, BareNode, Chain, say, wait_until

from greentx.errors import RemoteProtocolError
from greentx.protocol.requests import build_credits_notice
from greentx.relay.forwarded import Forwarded
from greentx.relay.written import SURELY_WRITTEN, Unwritten, Verdict, Written


@pytest.fixture
def chain():
    """A chain without Nodes, whose server tells what it writes."""
    with contextlib.ExitStack() as stack:
        chain = Chain(stack)
        chain.api.connections[SENDER].link.writer.flow.control.announce(True)
        yield chain


def tell_credits(chain, client, count):
    """Have the server say that it wrote *count* bytes."""
    chain.server.send(build_credits_notice(SENDER, client.conn_id, count))


CASES = [
    ("GET", b"", 0, "again"),
    ("GET", b"begun %b 100\n", 0, "again"),
    ("GET", b"done %b 100\n", 0, "again"),
    ("GET", b"done %b 100\n", 100, "answered"),
    ("GET", b"begun %b 100\n", 100, "closed"),
    ("GET", b"", 100, "closed"),
    ("GET", b"done %b 100\n", 60, "closed"),
    ("GET", b"begun %b 16385\n", 0, "closed"),
    ("POST", b"", 0, "502"),
    ("POST", b"begun %b 100\n", 0, "502"),
    ("POST", b"done %b 100\n", 0, "502"),
    ("POST", b"done %b 100\n", 100, "answered"),
    ("POST", b"begun %b 100\n", 100, "closed"),
]


@pytest.mark.parametrize("forward", ["relay_all", "forward_all"])
@pytest.mark.parametrize(("method", "report", "written", "outcome"), CASES)
def test_what_was_written_decides(chain, forward, method, report, written, outcome):
    """Not what the Node said, or what of that was lost; nobody is left without an answer, nobody gets two."""
    getattr(chain, forward)()
    bare = BareNode(chain)
    client = chain.client()
    client.send("/", method=method, body=b"x" if method == "POST" else b"")
    number = bare.request()
    if report:
        bare.say(report % number)
    if written:
        tell_credits(chain, client, written)
    bare.end()
    chain.node(say("second"), name="second")
    # What comes while the relay has not seen that end would go to the one that ended.
    wait_until(lambda: chain.relay.nodes.names == {"second"})
    status = chain.relay.status
    if outcome == "again":
        assert client.recv(10_000).body == b"second: GET / "
        assert status()["retried"] == 1
    elif outcome == "502":
        assert client.recv(10_000).status == 502
        wait_until(lambda: client.closed)
    elif outcome == "closed":
        with pytest.raises(RemoteProtocolError):
            client.recv(10_000)
        assert status()["closed"] == 1
    else:
        # The next request of its connection is served; the answer before it came another way.
        client.send("/next")
        assert client.recv(10_000).body == b"second: GET /next "
        assert [status()[name] for name in ("retried", "closed", "bad_gateway")] == [0, 0, 0]
    wait_until(lambda: chain.relay.open == 0)


def test_what_comes_before_it_is_decided_waits_for_that(chain):
    """An answer may still arrive, and the next one is not to overtake it."""
    chain.relay_all()
    bare = BareNode(chain)
    client = chain.client()
    client.send("/1")
    bare.say(b"done %b 100\n" % bare.request())
    wait_until(lambda: chain.relay.open == 0)
    chain.node(say("second"), name="second")
    bare.end()
    wait_until(lambda: chain.relay.nodes.names == {"second"})
    client.send("/2")
    client.send("/3")
    assert [client.recv(10_000).body for _ in range(3)] == [b"second: GET /%d " % number for number in (1, 2, 3)]


# -- what decides ------------------------------------------------------------------------------------------------------


def entries(chain, count):
    """Return requests."""
    connection = chain.api.connections[SENDER]
    return [Forwarded(connection, "1", b"message %d" % number, safe=True) for number in range(count)]


@pytest.mark.parametrize(
    ("done", "first", "grants", "verdict", "left"),
    [
        ([], None, [], Verdict.ANSWERED, 0),
        ([], 0, [], Verdict.UNANSWERED, 0),
        ([], 10, [], Verdict.UNANSWERED, 0),
        ([], 0, [1], Verdict.CUT, 0),
        ([], SURELY_WRITTEN, [], Verdict.UNANSWERED, 0),
        ([], SURELY_WRITTEN + 1, [], Verdict.CUT, 0),
        ([10], None, [], Verdict.UNANSWERED, 1),
        ([10], None, [4], Verdict.CUT, 1),
        ([10], None, [4, 6], Verdict.ANSWERED, 0),
        ([0], None, [], Verdict.ANSWERED, 0),
        ([10, 20], None, [10], Verdict.UNANSWERED, 1),
        ([10, 20], None, [10, 1], Verdict.CUT, 1),
        ([10, 20], None, [30], Verdict.ANSWERED, 0),
        ([30, 0], None, [], Verdict.UNANSWERED, 2),
        ([10], 5, [10], Verdict.UNANSWERED, 0),
        ([10], 5, [10, 5], Verdict.CUT, 0),
        ([10], 5, [], Verdict.UNANSWERED, 1),
        ([SURELY_WRITTEN + 1], None, [], Verdict.CUT, 1),
    ],
)
def test_two_sums_say_which_answers_were_written(chain, done, first, grants, verdict, left):
    """Whichever of the two comes first."""
    *finished, open_one = entries(chain, len(done) + 1)
    open_one.size = first or 0
    for credits_first in (False, True):
        written = Written()
        found = []
        for step in (True, False):
            if step is credits_first:
                found += [entry for count in grants for entry in written.credit(count)]
            else:
                found += [
                    entry for entry, size in zip(finished, done, strict=True) for entry in written.done(entry, size)
                ]
        assert written.judge(None if first is None else open_one) is verdict
        assert [entry for entry, _, _ in written.answers] == finished[len(done) - left :]
        assert found == finished[: len(done) - left]


def test_an_answer_behind_many_bytes_may_wait_at_the_server(chain):
    """As for a browser that pipelines, and did not read what was before it."""
    first, second = entries(chain, 2)
    second.size = 10
    written = Written()
    written.done(first, SURELY_WRITTEN)
    written.credit(SURELY_WRITTEN)
    assert written.judge(second) is Verdict.CUT
    written.sync()
    assert written.judge(second) is Verdict.UNANSWERED


def test_what_is_taken_back_is_open_again(chain):
    """Its next answer is counted from where the server is."""
    first, second = entries(chain, 2)
    written = Written()
    assert written.done(first, 10) == [] and written.credit(10) == [first]
    assert written.done(second, 20) == []
    assert written.take_back() == [second] and written.judge(second) is Verdict.UNANSWERED
    assert written.done(second, 7) == [] and written.credit(7) == [second]
    assert written.judge(None) is Verdict.ANSWERED


def test_of_what_is_kept_the_oldest_goes_first(chain):
    """Within a bound in bytes."""
    first, second, third = entries(chain, 3)
    unwritten = Unwritten(limit=2500)
    assert unwritten.add(first) is None and unwritten.add(second) is None
    assert unwritten.add(third) == first
    assert list(unwritten) == [second, third]
    unwritten.remove(second)
    unwritten.remove(second)
    unwritten.add(first)
    assert list(unwritten) == [third, first]
