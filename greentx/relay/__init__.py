"""The chain "API -> Node": one transceiver takes requests in, others answer them directly.

::

    browser -> Mongrel2 -- PUSH --> PULL  API: Transceiver + Relay
                  ^                          |  PUSH (bind)   requests, to one Node each
                  |                          |  XPUB (bind)   notices and topics, to all; receipts come back
                  |                          v
                  +-- SUB <-- XPUB -- Node: PULL, XSUB (connect)

The API decides (who asks, may they, which kind of work it is), a :class:`Node` works and answers. What is guaranteed:

* A request goes to one Node. It is open there as if Mongrel2 had sent it, and no longer here: here it counts as
  answered. Later requests of the same browser connection, answered here or handed on, wait until Mongrel2 has the
  answer, so that pipelined ones stay in order. It says so by a notice of a connection that is not there, to which
  whoever answered sends something behind it; where none comes, time has to do. (Left open: a request that comes when
  the answer before it is on its way already, though its client did not wait for that.)
* The end of a connection reaches the Node: each notice of the server is published to all Nodes, and each acts on those
  that it knows. A Node that works on a request when its connection ends sees ``DISCONNECT``.
* A Node that ends, or is cut off, while it works: the browsers that wait for it are disconnected, and can try again.
  What lay in its queue, not received yet, is lost, as with any handler of Mongrel2: those browsers get no answer.
* An answer never reaches a stranger: connection ids begin at 1 again when Mongrel2 restarts, so each request carries a
  word for the server's present life. A Node whose own connection to Mongrel2 broke asks the API which word is valid.
  (Left open: a request that the API hands on after Mongrel2 died and before it saw that.)
* The API may restart: Nodes connect again by themselves, and go on with what they have.

WebSockets stay the API's: it shakes hands, validates, pings and closes. Events that it hands on are not sticky, each
goes to the next Node. A Node has the WebSockets in its registry whose messages it has seen, to answer and to broadcast
to; all Nodes hear of their end. An answer from a Node is not compressed.

On the wire: PUSH carries Mongrel2's own request messages, so any Mongrel2 handler can pull them (then with
``receipts=False``), with one header more, ``RELAY``: the life, the request's token or nothing, the address of the
server's SUB socket, ``stand-in`` where that is no Mongrel2, and its public key where it demands CURVE. Headers in upper
case are the server's and the API's: Mongrel2 lower-cases what a client sends.
XPUB carries ``N`` and a request message (a notice, or the end of a WebSocket); ``T``, a topic as a netstring and a
message; ``@name`` and JSON, to one Node: the valid lives, or ``prove``, a sender and the number that its server is to
give notice of. A Node sends ``+name tokens`` (received), ``-name tokens`` (answered) and ``?name number`` (which lives
are valid?).
"""

from __future__ import annotations

from .api import Relay
from .node import Node

__all__ = ["Node", "Relay"]
