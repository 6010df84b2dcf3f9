"""The hooks that take ZeroMQ away whatever way a program ends.

A context that is left behind keeps its I/O thread, its file descriptors and its connections; one that is terminated
while a socket is open hangs. So each open :class:`~greentx.transport.context.Context` is known here, and its owner's
teardown runs

* in a ``finally`` hook of the hub: ``hub.destroy()`` closes what lives on that hub before the hub goes;
* at interpreter exit, for programs that never left their ``with`` block;
* on SIGTERM and SIGHUP, as ``SystemExit`` in the main greenlet, where nobody else handles, or ignores, that signal;
* on Ctrl-C, which is :class:`Interrupted` meanwhile: the ``KeyboardInterrupt`` that programs know, but where none of
  them catches it, an end without a traceback;
* after a fork, in the child, where it only cuts the child off: the sockets belong to the parent, and the child closes
  its copies of their connections.

Nothing is installed before the first context opens, and the hub's and the signals' hooks go with the last one: the
hub's when that begins to close, the signals' when it is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from gevent import getcurrent, monkey
from gevent._hub_local import get_hub_if_exists

__all__ = ["Interrupted", "at_exit", "forget", "guarded", "handler_in_c", "register", "uninterrupted", "unregister"]

log = logging.getLogger("greentx.transport")


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C while a context is open. gevent and Python print nothing of a ``SystemExit``; its code is 130."""


class _Guarded(Protocol):
    hub: Any

    def teardown(self) -> None: ...
    def before_fork(self) -> None: ...
    def after_fork(self) -> None: ...


#: The open contexts, in the order in which they opened.
guarded: list[_Guarded] = []
# Those whose threads run, also while they are being closed: a fork copies their connections.
_threaded: list[_Guarded] = []
# A hook of os.register_at_fork() cannot be removed: the process's hooks are installed once, and stay.
_process_hooks = False
# What we installed a handler for: the handler before it, and the address of ours in C (another one since then is
# somebody else's).
_hooked: dict[int, tuple[Any, int | None]] = {}

# The threads that are in uninterrupted(), and what came meanwhile.
_held: dict[int, list[int]] = {}
_thread_id: Callable[[], int] = monkey.get_original("_thread", "get_ident")

#: What ends a program that does not handle it: a terminal that closes sends SIGHUP, what manages processes SIGTERM.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def register(context: _Guarded) -> None:
    """Have *context* torn down with its hub, at interpreter exit, on SIGTERM and on SIGHUP."""
    global _process_hooks
    if not _process_hooks:
        # Not at import: importing greentx changes nothing.
        _process_hooks = True
        atexit.register(at_exit)
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    if not _on_hub(context.hub):
        _hook_hub(context.hub)
    guarded.append(context)
    _threaded.append(context)
    _hook_signals()


def forget(context: _Guarded) -> None:
    """*context* is closed, and its threads have gone; may be called twice."""
    if context in _threaded:
        _threaded.remove(context)
    # Not earlier: a signal that came while the last one closes would end the program on the spot.
    if not _threaded:
        _unhook_signals()


def unregister(context: _Guarded) -> None:
    """*context* is being torn down, and need not be; may be called twice. :func:`forget` is to follow."""
    if context not in guarded:
        return
    guarded.remove(context)
    if not _on_hub(context.hub):
        vars(context.hub).pop("destroy", None)


def _on_hub(hub: Any) -> list[_Guarded]:
    return [one for one in guarded if one.hub is hub]


def _close_all(contexts: list[_Guarded]) -> None:
    for one in contexts:
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

    # On the instance: the class is gevent's, and other hubs have nothing to tear down.
    hub.destroy = destroy_after_teardown


def at_exit() -> None:
    """Tear down what lives on the hub of this thread, for programs that never left their ``with`` block."""
    # Another thread's hub cannot be used from here; its contexts went with it, or the process ends without them.
    hub = get_hub_if_exists()
    if hub is not None:
        _close_all(_on_hub(hub))


def _before_fork() -> None:
    for one in _threaded:
        one.before_fork()


def _after_fork_in_child() -> None:
    for one in _threaded:
        one.after_fork()
        # A child that destroys its copy of the hub must not end what is the parent's.
        vars(one.hub).pop("destroy", None)
    guarded.clear()
    _threaded.clear()
    _unhook_signals()


def _hook_signals() -> None:
    """Make these signals unwind the main greenlet as Ctrl-C does, where they would end the process on the spot."""
    for number in _SIGNALS:
        # gevent.signal_handler() installs its handler in C, of which Python knows nothing.
        if number in _hooked or signal.getsignal(number) is not signal.SIG_DFL or handler_in_c(number):
            continue
        try:
            previous = signal.signal(number, _on_signal)
        except ValueError:
            return  # another thread than the main one: Python has signals handled there only
        _hooked[number] = previous, handler_in_c(number)
    _hook_interrupt()


def _hook_interrupt() -> None:
    # At a prompt Ctrl-C must not end Python.
    if not _hooked or signal.SIGINT in _hooked or hasattr(sys, "ps1") or sys.flags.interactive:
        return
    # Python's own handler, in Python and in C: where a program has another one it wants to be asked. All that Python
    # installs have the same address in C.
    pythons = next(iter(_hooked.values()))[1]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and handler_in_c(signal.SIGINT) == pythons:
        with contextlib.suppress(ValueError):  # another thread than the main one
            _hooked[signal.SIGINT] = signal.signal(signal.SIGINT, _on_signal), pythons


def _unhook_signals() -> None:
    for number, (previous, ours) in list(_hooked.items()):
        if signal.getsignal(number) is _on_signal and handler_in_c(number) == ours:
            try:
                signal.signal(number, previous)
            except ValueError:
                return  # the last context went in another thread; the next one in the main thread finds the hook there
        del _hooked[number]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Have what a signal raises wait until the end of this block, which must not block.

    For what makes a thing and notes it: in between a signal would leave one that nobody closes.
    """
    thread = _thread_id()
    if thread in _held:
        yield  # the outer block sees to it
        return
    came = _held[thread] = []
    try:
        yield
    finally:
        del _held[thread]
        if came:
            _on_signal(came[0], None)


def _on_signal(number: int, frame: FrameType | None) -> None:
    # Signals are handled in the main thread; what others do is not interrupted.
    held = _held.get(_thread_id())
    if held is not None:
        held.append(number)
        return
    hub = get_hub_if_exists()
    if hub is not None and (getcurrent() is hub or _is_lost_in(frame)):
        # By a callback of its own. The hub asks for signals when a timer is due, and calls that timer all the same: a
        # Timeout would be raised in a greenlet that has left it, such as the main one while it ends the program.
        hub.loop.run_callback(_raise, number)
        return
    _raise(number)


def _is_lost_in(frame: FrameType | None) -> bool:
    """True where an exception leaves a timer running (gevent's code for a Timeout), or where Python ignores it."""
    return frame is not None and (
        frame.f_globals.get("__name__") == "gevent.timeout" or frame.f_code.co_name == "__del__"
    )


def _raise(number: int) -> None:
    # Raised wherever the main thread is; gevent hands SystemExit on to the main greenlet from any other.
    raise (Interrupted if number == signal.SIGINT else SystemExit)(128 + number)


def handler_in_c(number: int) -> int | None:
    """Return the address of the handler that the system calls for a signal: 0 for the default, ``None`` if unknown."""
    try:
        import ctypes

        # POSIX has the handler in struct sigaction; it is the first member on Linux, macOS and the BSDs.
        action = ctypes.create_string_buffer(1024)
        if ctypes.CDLL(None).sigaction(int(number), None, action):
            return None
    except (ImportError, OSError, AttributeError):
        return None
    return ctypes.c_void_p.from_buffer(action).value or 0
