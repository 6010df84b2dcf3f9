"""Nodes that ask whether they may leave, and a relay that ends: a server, an API and Nodes in one process."""

from __future__ import annotations

import contextlib

import gevent
import pytest
from relay_chain import Chain, wait_until

from greentx.relay.forwarding import New
from greentx.relay.leaving import LeaveRequest


@pytest.fixture
def chain():
    """A server and an API, and Nodes on demand; all is ended after the test."""
    with contextlib.ExitStack() as stack:
        yield Chain(stack)


def test_one_that_is_replaced_is_told_when_the_new_one_is_there(chain):
    """It serves until then."""
    old = chain.node()
    asking = gevent.spawn(LeaveRequest(old.link).wait, 30, replaced=True, large=True)
    wait_until(lambda: len(chain.relay.leaving.asked) == 1)
    assert [session.name for session in chain.relay.leaving.large] == [old.name]
    gevent.sleep(0.7)  # nothing must happen, though it has waited for those that ask with it
    assert not asking.ready()
    chain.node()
    asking.get(timeout=10)


def test_one_that_nobody_replaces_is_told_at_once(chain):
    """And one whose relay is not there, or ends, is not kept waiting."""
    nodes = [chain.node(), chain.node()]
    requests = [LeaveRequest(node.link) for node in nodes]
    requests[0].wait(30, replaced=False, large=False)
    asking = gevent.spawn(requests[1].wait, 30, replaced=True, large=False)
    wait_until(lambda: len(chain.relay.leaving.asked) == 2)
    assert not chain.relay.leaving.large
    chain.relay.leaving.let_all_leave()
    asking.get(timeout=10)
    chain.relay.close()
    wait_until(lambda: not nodes[0].link.in_session)
    requests[0].wait(30, replaced=True, large=False)


def test_requests_wait_while_the_relay_ends_or_are_refused(chain):
    """Whoever has room."""
    chain.relay_all()
    chain.node(lambda conn, req: conn.reply_http(req, "answered"))
    client = chain.client("http")
    client.send("/")
    assert client.recv(5000).body == b"answered"
    # What comes behind one that its Node has not told to be done goes to that Node.
    wait_until(lambda: not chain.relay.forwarding.open)
    chain.relay.forwarding.treat_new(New.WAIT)
    client.send("/")
    wait_until(lambda: chain.relay.forwarding.waiting == 1)
    assert client.recv(200) is None
    chain.relay.forwarding.treat_new(New.GO_OUT)
    assert client.recv(5000).body == b"answered"
    # What comes behind one that its Node has not told to be done goes to that Node.
    wait_until(lambda: not chain.relay.forwarding.open)
    chain.relay.forwarding.treat_new(New.WAIT)
    client.send("/")
    wait_until(lambda: chain.relay.forwarding.waiting == 1)
    chain.relay.forwarding.treat_new(New.ARE_REFUSED)
    assert client.recv(5000).status == 503
