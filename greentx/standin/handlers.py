"""The handlers of one server: how they become connected, how they are let go of, and how that is known.

For this server a handler, named by the endpoint of its control socket, is in one of three states::

    unknown ── told to connect, its guid came over SUB, a PULL socket arrived at PUSH ──> connected
    unknown ── told to connect, and one of the proofs did not come while we waited ─────> in doubt
    in doubt ── it answered that it lets go, or 30 s passed ────────────────────────────> unknown
    connected ── disconnect(), stop(), or a connect() that finds it dead ───────────────> unknown

Only a connected one counts. One in doubt may still obey what it was told, and then get requests that nobody expects it
to answer: so it is told to let go again, and asked for that in the background, since it may answer late.

Both proofs are needed, because each direction is a connection of its own. ZeroMQ does not tell whose PULL socket has
arrived, so these are counted: of *n* handlers that proved SUB, *n* have to have come (see :class:`_Arrivals`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

import gevent
from gevent.lock import RLock

from ..errors import ConnectTimeout, ControlError, GreentxError, LocalProtocolError
from ..transport.pusher import Pusher
from .connector import Connector, Unanswered

__all__ = ["Handlers"]

log = logging.getLogger("greentx.server")

# Leaving must be quick where handlers are dead: both the asking and the proof have to fit.
_LEAVE_SECONDS = 2.0

# How long to go on asking a handler in doubt, which may still obey what it was told.
_IN_DOUBT_SECONDS = 30.0

# A handler that let go of the server closes its PULL socket; how long to wait for that to be seen.
_GONE_SECONDS = 0.5

# How long to wait for the PULL socket of a handler that may have had one here before.
_KNOWN_SECONDS = 0.25


class Handlers:
    """Which handlers are connected, and how that changes: by one greenlet at a time.

    All methods block their greenlet only; timeouts are milliseconds.

    Args:
        name: The server's, for the logs.
        wanted: The ones that :meth:`connect_wanted` connects.
        pusher: Returns the PUSH socket of the started server, or raises ``TransportError``.
    """

    def __init__(self, name: str, wanted: Iterable[Connector], pusher: Callable[[], Pusher]) -> None:
        self._connected: dict[str, Connector] = {}
        self._name = name
        self._wanted = {connector.endpoint: connector for connector in wanted}
        self._pusher = pusher
        self._in_doubt = _InDoubt()
        # Arrivals can be counted for one group of handlers at a time only. connect() holds it around a group of one.
        self._turn = RLock()

    @property
    def connected(self) -> tuple[str, ...]:
        """Endpoints of the control sockets of the connected handlers, in the order of their connecting."""
        return tuple(self._connected)

    @property
    def any_told(self) -> bool:
        """True where a handler is connected, or may go on to connect."""
        return bool(self._connected) or len(self._in_doubt) > 0

    def connect(self, connector: Connector, milliseconds: int) -> None:
        """Connect one more, or have a connected one prove it again. Errors are those of ``Server.connect``."""
        deadline = monotonic() + milliseconds / 1000
        with self._turn:
            if connector.endpoint in self._connected:
                # Without any PULL socket it is known to have gone; to ask would harm an old handler in its place.
                if self._pusher().peers and connector.is_connected(milliseconds):
                    return
                # Not there any more where the server was stopped while we asked.
                self._connected.pop(connector.endpoint, None)
            self._connect_all([connector], _left(deadline))

    def connect_wanted(self, milliseconds: int) -> None:
        """Connect the wanted ones that are not connected, at the same time: many need no longer than one."""
        if not self._wanted.keys() <= self._connected.keys():
            self._connect_all(list(self._wanted.values()), milliseconds)

    def disconnect(self, connector: Connector, milliseconds: int) -> None:
        """Have one let go, and forget that it was wanted. Errors are those of ``Server.disconnect``."""
        with self._turn:
            wanted = self._wanted.pop(connector.endpoint, None)
            if connector.endpoint not in self._connected:
                if wanted is not None:
                    return
                raise LocalProtocolError(f"{connector.endpoint} is not connected; connected are {list(self.connected)}")
            # Before it is asked: if it does not answer, it must not count as connected either.
            del self._connected[connector.endpoint]
            pusher = self._pusher()
            before = pusher.peers
            deadline = monotonic() + milliseconds / 1000
            # Two proofs again: it answers that it is quiet, and a PULL socket leaves.
            connector.disconnect(milliseconds)
            connector.verify_disconnect(_left(deadline))
            if not pusher.wait_departure(before, _GONE_SECONDS):
                log.warning("%s let go of %s, but no PULL socket left", connector.endpoint, pusher.endpoint)

    def leave(self) -> None:
        """Tell the connected ones to let go, and wait for those in doubt; 2 s at the most. Errors are logged."""
        pusher = self._pusher()
        before = pusher.peers
        deadline = monotonic() + _LEAVE_SECONDS
        greenlets = [gevent.spawn(self._tell_end, one) for one in self._connected.values()]
        try:
            gevent.joinall(greenlets)
            self._in_doubt.join(max(0.0, deadline - monotonic()))
            for endpoint in self._in_doubt:
                log.warning("%s was not told that %s ends: it may go on to connect", endpoint, self._name)
        finally:
            gevent.killall(greenlets)
        told = sum(one.value is True for one in greenlets)
        left = max(0.0, min(_GONE_SECONDS, deadline - monotonic()))
        if told and not pusher.wait_peers(lambda: pusher.peers <= max(0, before - told), left):
            log.warning("%s ends with %d PULL sockets connected", self._name, pusher.peers)

    def end(self) -> None:
        """Forget all of them; asks nobody and never blocks."""
        self._connected.clear()
        self._in_doubt.end()

    def _tell_end(self, connector: Connector) -> bool:
        """Return whether the handler answered that it lets go."""
        try:
            connector.disconnect(round(_LEAVE_SECONDS * 1000))
        except GreentxError as error:
            log.warning("%s was not told that %s ends: %s", connector.endpoint, self._name, error)
            return False
        return True

    def _connect_all(self, connectors: list[Connector], milliseconds: int) -> None:
        with self._turn:
            missing = [one for one in connectors if one.endpoint not in self._connected]
            arrivals = _Arrivals(self._pusher(), len(self._connected))
            greenlets = [gevent.spawn(self._connect_one, one, arrivals, milliseconds) for one in missing]
            try:
                gevent.joinall(greenlets)
            # Where we are killed ourselves they must not go on to connect.
            finally:
                gevent.killall(greenlets)
            errors = [one.value for one in greenlets if isinstance(one.value, GreentxError)]
        # The only error as it is, with its class and its address.
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ControlError(f"{len(errors)} of {len(missing)} handlers: " + "; ".join(map(str, errors)))

    def _connect_one(self, connector: Connector, arrivals: _Arrivals, milliseconds: int) -> GreentxError | None:
        """Lead one handler from unknown, or in doubt, to connected; return what went wrong, ``None`` if nothing did."""
        deadline = monotonic() + milliseconds / 1000
        was_in_doubt = connector.endpoint in self._in_doubt
        try:
            # What it was told before has to be done with, or it would let go of what comes now.
            if was_in_doubt:
                self._in_doubt.cancel(connector.endpoint)
                _let_go(connector, milliseconds)
            connector.connect(_left(deadline))
        except GreentxError as error:
            # What never went out will not be obeyed either: then there is no doubt.
            if isinstance(error, Unanswered) and (error.asked or was_in_doubt):
                self._in_doubt.add(connector)
            return error
        except BaseException:  # our caller waits no longer, raised again: whether the question went out is not known
            self._in_doubt.add(connector)
            raise
        proven = False
        try:
            connector.verify_connect(_left(deadline))
            proven = True
            if not arrivals.wait_one(deadline):
                pusher = self._pusher()
                why = f"{connector.endpoint} did not pull from {pusher.endpoint} after {milliseconds} ms"
                if self._connected and pusher.peers:
                    # To have it let go would disconnect the other one, which it most likely is.
                    return ConnectTimeout(
                        f"{why}: it seems to be a connected handler by another name; there are {list(self.connected)}",
                        address=connector.endpoint,
                    )
                raise ConnectTimeout(why, address=connector.endpoint)
        except GreentxError as error:
            self._in_doubt.add(connector).join(_GONE_SECONDS)
            if connector.endpoint in self._in_doubt:
                log.warning("%s may go on to connect: it does not answer", connector.endpoint)
            return error
        except BaseException:  # our caller waits no longer; raised again
            # One that proved SUB and has no PULL socket to come: another name of a connected one, most likely.
            if not (proven and self._connected):
                self._in_doubt.add(connector)
            raise
        self._connected[connector.endpoint] = connector
        return None


class _Arrivals:
    """Counts the PULL sockets that arrive while a group of handlers connects: whose one it is cannot be told.

    Args:
        pusher: Where they arrive.
        connected: How many handlers are connected already.
    """

    def __init__(self, pusher: Pusher, connected: int) -> None:
        self._pusher = pusher
        # Each handler that proved SUB adds one.
        self._expected = pusher.arrivals
        # PULL sockets that were there before, of no handler that was asked to connect.
        self._strangers = max(0, pusher.peers - connected)

    def wait_one(self, deadline: float) -> bool:
        """Wait until one more has arrived, for a handler that has just proved SUB; False where it did not."""
        pusher = self._pusher
        self._expected += 1
        until = min(deadline, monotonic() + _KNOWN_SECONDS) if self._strangers else deadline
        if pusher.wait_peers(lambda: pusher.arrivals >= self._expected, max(0.0, until - monotonic())):
            return True
        self._expected -= 1
        if not self._strangers:
            return False
        # It pulled from here before it was asked to, as its own Mongrel2.
        self._strangers -= 1
        return True


class _InDoubt:
    """The handlers that were told to connect and did not prove it, each with a greenlet that has it let go again."""

    def __init__(self) -> None:
        self._greenlets: dict[str, gevent.Greenlet] = {}

    def __len__(self) -> int:
        return len(self._greenlets)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._greenlets))

    def add(self, connector: Connector) -> gevent.Greenlet:
        """Have a handler let go; it is asked once and may answer late, so the greenlet that this returns waits."""
        greenlet = self._greenlets[connector.endpoint] = gevent.spawn(self._settle, connector)
        return greenlet

    def cancel(self, endpoint: str) -> None:
        """Stop asking one that is in doubt."""
        self._greenlets.pop(endpoint).kill()

    def join(self, timeout: float) -> None:
        """Wait until all have answered, *timeout* seconds at the most."""
        gevent.joinall(list(self._greenlets.values()), timeout=timeout)

    def end(self) -> None:
        """Stop asking all of them, without waiting."""
        # Also called in the hub, which cannot wait for them.
        gevent.killall(list(self._greenlets.values()), block=False)
        self._greenlets.clear()

    def _settle(self, connector: Connector) -> None:
        # One question with a long timeout: it waits at the handler, which obeys in order.
        try:
            _let_go(connector, round(_IN_DOUBT_SECONDS * 1000))
        except GreentxError as error:
            log.warning("%s may go on to connect: %s", connector.endpoint, error)
        self._greenlets.pop(connector.endpoint, None)


def _let_go(connector: Connector, milliseconds: int) -> None:
    """Have a handler let go that perhaps never connected. Raises :class:`Unanswered`."""
    try:
        connector.disconnect(milliseconds)
    # Only silence leaves a doubt; a refusal says that the handler does not know the server.
    except Unanswered:
        raise
    except ControlError as error:
        log.debug("%s had not connected: %s", connector.endpoint, error)


def _left(deadline: float) -> int:
    """The milliseconds until *deadline*; one at least, so that an error is the question's own."""
    return max(1, round((deadline - monotonic()) * 1000))
