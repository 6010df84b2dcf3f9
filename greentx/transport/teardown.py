"""The hooks that take ZeroMQ away whatever way a program ends.

A context that is left behind keeps its I/O thread, its file descriptors and its connections; one that is terminated
while a socket is open hangs. So each open :class:`~greentx.transport.context.Context` is known here, and its owner's teardown
runs

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
import threading
from collections.abc import Callable
from typing import Any, Protocol

from gevent.hub import get_hub

__all__ = ["register", "unregister"]

log = logging.getLogger("greentx.transport")


class _Guarded(Protocol):
    def teardown(self) -> None: ...
    def forked(self) -> None: ...


_guarded: dict[int, list[_Guarded]] = {}  # by id of the hub; a dict in a list's place keeps no hub alive
_process_hooks = False
_previous_sigterm: Any = None


def register(guarded: _Guarded) -> None:
    """Have *guarded* torn down with the current hub, at interpreter exit and on SIGTERM."""
    global _process_hooks
    if not _process_hooks:
        _process_hooks = True
        atexit.register(_at_exit)
        os.register_at_fork(after_in_child=_after_fork_in_child)
    hub = get_hub()
    known = _guarded.setdefault(id(hub), [])
    if not known:
        _hook_hub(hub)
    known.append(guarded)
    _hook_sigterm()


def unregister(guarded: _Guarded) -> None:
    """Forget *guarded*, which has been torn down; may be called twice, and on another hub than ``register``."""
    for key, known in list(_guarded.items()):
        if guarded in known:
            known.remove(guarded)
            if not known:
                del _guarded[key]
    hub = get_hub()
    if id(hub) not in _guarded and "destroy" in vars(hub):
        del hub.destroy
    if not _guarded:
        _unhook_sigterm()


def _close_all(guarded: list[_Guarded]) -> None:
    for one in list(guarded):
        try:
            one.teardown()
        except Exception:
            log.exception("%r could not be torn down", one)


def _hook_hub(hub: Any) -> None:
    destroy: Callable[..., None] = type(hub).destroy

    def destroy_after_teardown(destroy_loop: bool | None = None) -> None:
        try:
            _close_all(_guarded.get(id(hub), []))
        finally:
            _guarded.pop(id(hub), None)
            vars(hub).pop("destroy", None)
            destroy(hub, destroy_loop)

    hub.destroy = destroy_after_teardown


def _at_exit() -> None:
    _close_all(_guarded.get(id(get_hub()), []))


def _after_fork_in_child() -> None:
    for known in _guarded.values():
        for one in known:
            one.forked()
    _guarded.clear()


def _hook_sigterm() -> None:
    """Make SIGTERM unwind the main greenlet as Ctrl-C does, where it would otherwise end the process on the spot."""
    global _previous_sigterm
    if _previous_sigterm is None and _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _previous_sigterm = signal.signal(signal.SIGTERM, _on_sigterm)


def _unhook_sigterm() -> None:
    global _previous_sigterm
    if _previous_sigterm is not None and _in_main_thread():
        if signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, _previous_sigterm)
        _previous_sigterm = None


def _on_sigterm(number: int, frame: object) -> None:
    # Raised wherever the main thread is; gevent hands SystemExit on to the main greenlet from any other.
    raise SystemExit(128 + number)


def _in_main_thread() -> bool:
    return bool(get_hub().main_hub) and threading.current_thread() is threading.main_thread()
