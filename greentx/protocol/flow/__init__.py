"""What may be sent to whom now. No I/O, no clock: times are arguments, effects come out as messages to send.

Mongrel2 queues 16 messages for a connection; the 17th kills it, undelivered data included (probed: a burst of 17 small
ones gave the client nothing). How much is queued there cannot be seen, and no pace is slow enough for a server that is
busy or stopped for a moment. What can be had is a receipt: a message to a connection that nobody has is answered with a
notice, after everything sent before was received (probed: 44 us; 500 times 12 messages and a receipt arrived whole).
So a connection may have :data:`BURST` messages that no receipt covers; what is written meanwhile is joined into one
message, of any size.

A receipt does not say that a message was written to the browser. Small ones are, as fast as they come; large ones need
their time, and the 16 fill up. So for large ones we estimate how long a browser that reads at a fair pace needs for
them, and :data:`QUEUED` of them are under way at most; a browser that is slower all the time is lost, since nobody
tells of it.

With ``download.flow_control`` the limit is 102400 bytes not yet written by the server, however many messages they are,
and the server reports each message that it wrote (probed): then those reports, the credits, decide. Where other
processes get some of them, those that do come say how far the browser is (:mod:`greentx.protocol.flow.scattered`).

Who knows how much a connection may still be sent: one of the :mod:`greentx.protocol.flow.accounts`, of which
:class:`FlowControl` chooses one.

Order: each piece gets its place when it is written. Without an outbox for its connection, and where it may go at once,
that is a message, which goes out or stands in the :class:`Line` of a full pipe; else it is a part of the connection's
:class:`Outbox`, which gets a turn in that line. While something waits in an outbox, nothing is sent to its connection
but out of it.
"""

from __future__ import annotations

from .accounts import Accounts
from .control import FlowControl
from .flow import Flow
from .ledger import Ledger
from .limits import (
    BURST,
    CREDITS,
    DEFAULT_BOUNDS,
    EAGER,
    LARGE,
    NOBODY,
    NUMBERS,
    OUTBOX_LIMIT,
    QUEUED,
    READ_RATE,
    RECEIPT_TRIES,
    RESERVE,
    ROOM,
    SHARED_BURST,
    SLOW_POLICIES,
    UNHEARD_RATE,
    UNWAITED,
    Bounds,
)
from .line import Line, Turn
from .listening import Heard, Listening
from .outbox import Outbox
from .pacer import Pacer, Unpaced
from .receipts import TIME, Overdue, ReceiptRules, first_number, range_of
from .scattered import Hearing

# A process that sends has all of it from here; the files say where each decision is made.
__all__ = [
    "BURST",
    "CREDITS",
    "DEFAULT_BOUNDS",
    "EAGER",
    "LARGE",
    "NOBODY",
    "NUMBERS",
    "OUTBOX_LIMIT",
    "QUEUED",
    "READ_RATE",
    "RECEIPT_TRIES",
    "RESERVE",
    "ROOM",
    "SHARED_BURST",
    "SLOW_POLICIES",
    "TIME",
    "UNHEARD_RATE",
    "UNWAITED",
    "Accounts",
    "Bounds",
    "Flow",
    "FlowControl",
    "Heard",
    "Hearing",
    "Ledger",
    "Line",
    "Listening",
    "Outbox",
    "Overdue",
    "Pacer",
    "ReceiptRules",
    "Turn",
    "Unpaced",
    "first_number",
    "range_of",
]
