"""The hooks that take ZeroMQ away whatever way a program ends.

A context that is left behind keeps its I/O thread, its file descriptors and its connections; one that is terminated
while a socket is open hangs. So each open :class:`~greentx.transport.context.Context` is known here, and its owner's
teardown runs

* in a ``finally`` hook of the hub: ``hub.destroy()`` closes what lives on that hub before the hub goes;
* at interpreter exit, for programs that never left their ``with`` block;
* on SIGTERM, as ``SystemExit`` in the main greenlet, where nobody else handles that signal;
* after a fork, in the child, where it only cuts the child off: the sockets belong to the parent.

Nothing is installed before the first context opens, and the hub's and the signal's hooks go with the last one.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

from gevent._hub_local import get_hub_if_exists

__all__ = ["register", "unregister"]

log = logging.getLogger("greentx.transport")


class _Guarded(Protocol):
    hub: Any

    def teardown(self) -> None: ...
    def forked(self) -> None: ...


_guarded: list[_Guarded] = []
_process_hooks = False
_previous_sigterm: Any = None
_sigterm_in_c: int | None = None


def register(guarded: _Guarded) -> None:
    """Have *guarded* torn down with its hub, at interpreter exit and on SIGTERM."""
    global _process_hooks
    if not _process_hooks:
        _process_hooks = True
        atexit.register(_at_exit)
        os.register_at_fork(after_in_child=_after_fork_in_child)
    if not _on_hub(guarded.hub):
        _hook_hub(guarded.hub)
    _guarded.append(guarded)
    _hook_sigterm()


def unregister(guarded: _Guarded) -> None:
    """Forget *guarded*, which has been torn down; may be called twice."""
    if guarded not in _guarded:
        return
    _guarded.remove(guarded)
    if not _on_hub(guarded.hub):
        vars(guarded.hub).pop("destroy", None)
    if not _guarded:
        _unhook_sigterm()


def _on_hub(hub: Any) -> list[_Guarded]:
    return [one for one in _guarded if one.hub is hub]


def _close_all(guarded: list[_Guarded]) -> None:
    for one in guarded:
        try:
            one.teardown()
        except Exception:
            log.exception("%r could not be torn down", one)


def _hook_hub(hub: Any) -> None:
    destroy: Callable[..., None] = type(hub).destroy

    def destroy_after_teardown(destroy_loop: bool | None = None) -> None:
        try:
            _close_all(_on_hub(hub))
        finally:
            vars(hub).pop("destroy", None)
            destroy(hub, destroy_loop)

    hub.destroy = destroy_after_teardown


def _at_exit() -> None:
    hub = get_hub_if_exists()
    if hub is not None:
        _close_all(_on_hub(hub))


def _after_fork_in_child() -> None:
    for one in _guarded:
        one.forked()
        vars(one.hub).pop("destroy", None)
    _guarded.clear()
    _unhook_sigterm()


def _hook_sigterm() -> None:
    """Make SIGTERM unwind the main greenlet as Ctrl-C does, where it would otherwise end the process on the spot."""
    global _previous_sigterm, _sigterm_in_c
    # gevent.signal_handler() installs its handler in C, of which Python knows nothing.
    if _previous_sigterm is not None or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or _c_sigterm():
        return
    try:
        _previous_sigterm = signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:
        return  # another thread than the main one: Python has signals handled there only
    _sigterm_in_c = _c_sigterm()


def _unhook_sigterm() -> None:
    global _previous_sigterm
    if _previous_sigterm is None:
        return
    if signal.getsignal(signal.SIGTERM) is _on_sigterm and _c_sigterm() == _sigterm_in_c:
        try:
            signal.signal(signal.SIGTERM, _previous_sigterm)
        except ValueError:
            return  # the last context went in another thread; the next one in the main thread finds the hook installed
    _previous_sigterm = None


def _on_sigterm(number: int, frame: object) -> None:
    # Raised wherever the main thread is; gevent hands SystemExit on to the main greenlet from any other.
    raise SystemExit(128 + number)


def _c_sigterm() -> int | None:
    """Return the address of the handler that the system calls on SIGTERM: 0 for the default, ``None`` if unknown."""
    try:
        import ctypes

        # POSIX has the handler in struct sigaction; it is the first member on Linux, macOS and the BSDs.
        action = ctypes.create_string_buffer(1024)
        if ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, action):
            return None
    except (ImportError, OSError, AttributeError):
        return None
    return ctypes.c_void_p.from_buffer(action).value or 0
