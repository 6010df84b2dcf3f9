"""The chain "API -> Node": one process takes requests in, others answer them directly.

::

    browser -> Mongrel2 -- PUSH --> PULL  API: Transceiver + Relay
                  ^                          |  ROUTER (bind)  requests, notices, each to one Node; reports come back
                  |                          |  XPUB (bind)    topics
                  |                          |  PUSH (bind)    requests for plain handlers, while no Node is there
                  |                          v
                  +-- SUB <-- XPUB -- Node: DEALER, SUB (connect)

The API decides (who asks, may they, which kind of work it is), or is nothing but a relay; a :class:`Node` works and
answers. What is guaranteed:

* **Sticky.** Everything of one browser connection goes to the Node that got its first message, in order. A new one goes
  to the Node with the fewest open requests for its capacity. A Node that stands still delays nobody else.
* **Accounted for.** A request whose Node has gone goes to another one, if its method is safe and nothing of its answer
  may have gone out, or the Node never received it (``req.redelivered`` says so); else, and where two Nodes have gone
  with it, it is answered 502, or its connection is closed where something of the answer may have gone out. Of messages
  of JSON and XML sockets nobody says that they were handled: where a Node has gone that had some, their connections are
  closed (:mod:`greentx.relay.events`). One for which nobody has room in time is answered 503.
* **By what was written.** With ``download.flow_control`` Mongrel2 tells the API how many bytes it wrote, and only that
  counts when a Node has gone (:mod:`greentx.relay.written`): no request of a safe method is lost, but for those in the
  middle of a long answer. Without it a Node's word has to do, and each connection is closed whose last answer is in
  doubt. Left open: an answer of more than 16 KB that a Node did not announce before its end, to a browser that reads
  too slowly for the system to take it, may be given again; so may one to a browser that pipelines and does not read.
* **A session.** One connection of a Node is one session: with it all ends that the Node was given. So a Node that
  cannot be reached and a Node that has gone are the same. It answers for as long as the relay's last lease says
  (:mod:`greentx.relay.lease`), and its requests are given to others after that only.
* **A way.** A Node may be cut off from one server, and from nothing else. The relay finds that out within some seconds:
  then the Node gets no new connections of that server, and where it lasts for ten, the connections are closed whose
  answers may not have arrived (:mod:`greentx.relay.ways`).
* **A life.** An answer never reaches a stranger: connection ids begin at 1 again when Mongrel2 restarts, so each
  request carries a word for the server's present life. A Node whose own connection to Mongrel2 broke asks the API which
  word is valid. (Left open: a request that the API forwards after Mongrel2 died and before it saw that.)
* **WebSockets** stay the API's, which runs their protocol; a Node's application has what is behind it. Each message is
  kept until the application has handled it; what was not goes on at the next Node, marked where somebody may have begun
  with it (:mod:`greentx.relay.socket_table`, :mod:`greentx.relay.socket_backlog`).
* **Sessions of applications.** Where a Node claims one by a parameter of the query (:meth:`Node.claim`), all requests
  with that go there, whatever their connection. A Node's claims go with it (:mod:`greentx.relay.claims`).
* **An end in order.** A Node that stops says so, gets nothing new, finishes, and goes.

Where the API answers some requests itself, pipelined ones wait until Mongrel2 has the answer to the one before: it says
so by a notice of a connection that is not there, to which whoever answered sends something behind it
(:mod:`greentx.relay.proofs`); where none comes, time has to do.

On the wire, between ROUTER and DEALER, each message is one frame: ``KIND word word ...``, a newline, and bytes; a
request's are Mongrel2's own message. Down: ``welcome`` (the relay's word, its clock, where topics are; the servers),
``servers``, ``request`` (number, word of the server's life, ``redelivered``), ``event`` (what no answer is due to),
``notice``, ``wrote`` (a server's word, and of each browser connection how many bytes), ``prove``, ``lease``,
``clock``, ``left``, ``over`` (why). Up: ``hello``, ``ready`` and ``unready`` (a
server can be answered, by its word), ``numbers`` (which receipts are the Node's), ``received`` (how many messages; for
how many there is room again), ``begun`` (before the first byte of an answer leaves; each with the bytes that leave
then), ``done`` (each with the bytes of its answer), ``back`` (not seen by the application), ``lost`` (the server is out
of reach), ``claims`` (keys of sessions), ``ask`` (which lives are valid?), ``clock``, ``leave``, ``bye`` (nothing is
under way any more). Those of WebSockets begin with ``ws-`` (:mod:`greentx.relay.socket_messages`). XPUB carries a topic
as a netstring behind a ``T``, and a message.
"""

from __future__ import annotations

from .api import Relay
from .node import Node

__all__ = ["Node", "Relay"]
