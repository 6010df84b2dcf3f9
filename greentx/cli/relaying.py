"""The process of ``greentx relay``: what it opens, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import gevent
from gevent import socket

from ..edge.folder import hold
from ..handler.transceiver import Transceiver
from ..relay import Relay
from ..relay.nodes import NodeSession
from ..wsgi.listeners import Listener, Options, make_listener, parse_url
from . import front_end, site
from .arguments import errors_as_one_line
from .relay_end import RelayEnd
from .signals import Signals

__all__ = ["Program"]

log = logging.getLogger("greentx.cli")


class Program:
    """The relay's process.

    Args:
        arguments: Those of ``greentx relay``, checked.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._signals = Signals()
        # Whoever started us has gone.
        self._at_eof = False

    def run(self) -> int:
        """Serve until a signal, or the end of stdin where that counts; return the exit code."""
        arguments = self._arguments
        with contextlib.ExitStack() as stack:
            if arguments.private_folder is not None:
                stack.enter_context(self._private(arguments.private_folder))
            if arguments.notify_fd is not None:
                os.set_inheritable(arguments.notify_fd, False)  # this process holds it, and not its front end
            _become(arguments.uid, arguments.gid)
            stack.enter_context(self._signals.watched())
            if arguments.until_eof:
                stack.callback(gevent.spawn(self._wait_for_eof).kill)
            with errors_as_one_line():
                listener = self._make_listener()
                stack.callback(listener.close)
                transceiver = listener.open()
                stack.callback(transceiver.stop, 0)
                # Whom to let in, and by which subprotocol, is the application's to say.
                transceiver.handshake_events = True
                for url in arguments.connect[1:]:
                    parse_url(url).add_to(transceiver)
                relay = self._make_relay(transceiver)
            self._log_start(relay, listener, transceiver)
            serving = gevent.spawn(relay.serve)
            if arguments.notify_fd is not None:
                os.write(arguments.notify_fd, b"ready\n")
            # It ends by itself only where it fails.
            gevent.wait([self._signals.stop, serving], count=1)
            log.info("ending")
            self._end(RelayEnd(relay, transceiver, arguments.graceful_timeout, last=listener.owns_front_end))
            if serving.ready():
                serving.get()
        return 0

    def _make_listener(self) -> Listener:
        arguments = self._arguments
        urls = arguments.connect
        # All of them before anything starts.
        for url in urls:
            parse_url(url)
        # The keys are for the Nodes as well, so they may be there without a control socket.
        options = Options(control=site.control(arguments) if arguments.control else None, **site.bounds(arguments))
        if urls:
            return make_listener(urls[0], {}, options=options)
        tls, settings = front_end.tls(arguments), front_end.settings(arguments)
        return make_listener(arguments.bind, tls, settings, options, arguments.front_end)

    def _make_relay(self, transceiver: Transceiver) -> Relay:
        arguments = self._arguments
        options: dict[str, Any] = {} if arguments.retry is None else {"retry": arguments.retry}
        return Relay(
            transceiver,
            arguments.push,
            arguments.pub,
            node_addr=arguments.listen,
            send_timeout=arguments.send_timeout,
            curve_secret=arguments.curve_secret or None,
            curve_allow=arguments.curve_allow or None,
            **options,
        )

    def _log_start(self, relay: Relay, listener: Listener, transceiver: Transceiver) -> None:
        arguments = self._arguments
        where = ", ".join(arguments.connect)
        if listener.owns_front_end:
            where = front_end.shown(listener)
        log.info("relay of %s, for Nodes at %s", where, relay.node_endpoint)
        for name, endpoint in (("plain handlers", relay.push_endpoint), ("topics", relay.pub_endpoint)):
            if endpoint is not None:
                log.info("%s at %s", name, endpoint)
        if transceiver.rep_port is not None:
            log.info("control socket on port %d", transceiver.rep_port)
        if arguments.serves is None:
            return

        def first_came(session: NodeSession) -> None:
            relay.nodes.came.remove(first_came)
            log.info("serving %s %s %s", arguments.serves, "on" if listener.owns_front_end else "over", where)

        relay.nodes.came.append(first_came)

    def _end(self, end: RelayEnd) -> None:
        # In a greenlet, so that a second signal can cut it short.
        ending = gevent.spawn(end.run)
        gevent.wait([ending, self._signals.hurry], count=1)
        if ending.dead:
            ending.get()
        ending.kill()

    @contextlib.contextmanager
    def _private(self, folder: str) -> Iterator[None]:
        """Share *folder* with whoever has made it, and remove it in the end where they have gone."""
        lock = hold(folder)
        try:
            yield
        finally:
            if self._at_eof:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _wait_for_eof(self) -> None:
        """Nobody writes there, so that it can be read at its end only."""
        while True:
            socket.wait_read(0)
            with contextlib.suppress(BlockingIOError):
                if not os.read(0, 1):
                    self._at_eof = True
                    self._signals.stop.set()
                    return


def _become(uid: int | None, gid: int | None) -> None:
    """Be another user from now on, as gunicorn's workers are."""
    if gid is not None:
        os.setgroups([gid])
        os.setgid(gid)
    if uid is not None:
        os.setuid(uid)
