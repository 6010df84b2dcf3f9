"""A real ``mongrel2`` that this process owns.

It runs in the foreground out of a temporary folder, as the same user and without a chroot, root included. Facts about
Mongrel2 that are marked "probed" were seen on Debian's 1.12.2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence

from ..errors import LocalProtocolError, Mongrel2NotFound
from . import addresses
from .config import SERVER_UUID, Handler, checked_settings, write_database
from .front_end import FrontEndProcess, Place
from .mongrel2_output import Mongrel2Output

__all__ = ["Mongrel2"]

_DATABASE = "config.sqlite"


class Mongrel2(FrontEndProcess):
    """A ``mongrel2`` process of our own, from :meth:`start` to :meth:`stop`; a context manager, too.

    It ends when we end, even if we are killed (see :class:`~greentx.edge.process.ChildProcess`; start it from a thread
    that lives as long). Its log lines go to the logger ``greentx.edge.mongrel2`` at their own levels; those of its
    start, whose errors :meth:`start` raises, and of its shutdown, full of errors by nature, at DEBUG. Waiting blocks
    only the calling greenlet. Of greenlets that start or end it at the same time each waits for the one before.

    1.12.2 often ends with -6 (SIGABRT) when it is told to stop while connections are open (probed); that is no error of
    ours.

    Args:
        routes: Paths (``"/"``, ``"@chat"``, ``"<chat"``, and ``"*"`` for ``OPTIONS *``) and the handlers that answer
            them; ``None`` is ``"/"`` and a handler whose sender is ``greentx``.
        bind_addr: The address to listen on, or a name for one; ``""`` is every IPv4 address.
        port: 0 chooses a free one at the first start, and then keeps it.
        settings: Mongrel2's settings by name, over :data:`greentx.edge.config.DEFAULT_SETTINGS`.
        transport: How endpoints are made up for handlers that have none: ``"ipc"`` gives sockets in the temporary
            folder, known at once; ``"tcp"`` free ports of 127.0.0.1, known after the first start.
        certfile: A PEM file with a certificate (chain): the port then talks TLS.
        keyfile: A PEM file with its key; ``None`` where *certfile* holds it.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that Mongrel2 could not use; the message names it.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler] | None = None,
        *,
        bind_addr: str = "127.0.0.1",
        port: int = 0,
        settings: Mapping[str, int | str] | None = None,
        transport: str = "ipc",
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
    ) -> None:
        if keyfile is not None and certfile is None:
            raise LocalProtocolError(f"keyfile {keyfile!r} needs a certfile")
        checked = checked_settings(settings)
        certificate = None if certfile is None else (os.fspath(certfile), os.fspath(keyfile or certfile))
        super().__init__(
            _Program(checked, certificate),
            checked,
            routes,
            bind_addr=bind_addr,
            port=port,
            transport=transport,
            tls=certificate is not None,
        )

    @property
    def control_spec(self) -> str:
        """The endpoint of its control port, a REP socket."""
        return f"ipc://{self.folder}/control"


class _Program:
    name = "mongrel2"
    descriptors = ()
    files = ()

    def __init__(self, settings: Mapping[str, int | str], certificate: tuple[str, str] | None) -> None:
        self.output = Mongrel2Output()
        self._settings = settings
        self._certificate = certificate

    def command(self) -> list[str]:
        path = shutil.which("mongrel2")
        if path is None:
            raise Mongrel2NotFound(
                "there is no mongrel2 on the PATH; install it (Debian, Ubuntu: apt-get install mongrel2-core; "
                "elsewhere see https://mongrel2.org)"
            )
        # It is started in another folder than ours.
        return [os.path.abspath(path), _DATABASE, SERVER_UUID]

    def write(self, place: Place) -> None:
        folder = place.folder
        assert place.host is not None
        # A PID that is some other process by now would keep Mongrel2 from starting.
        for leftover in ("pid", "control", f"{SERVER_UUID}.crt", f"{SERVER_UUID}.key"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{leftover}")
        if self._certificate is not None:
            for path, suffix in zip(self._certificate, ("crt", "key"), strict=True):
                # Opened, to fail here where it cannot be read; linked, so that a renewed one counts at a restart.
                with open(path, "rb"):
                    os.symlink(os.path.abspath(path), f"{folder}/{SERVER_UUID}.{suffix}")
        write_database(
            f"{folder}/{_DATABASE}",
            place.routes,
            host=place.host,
            port=place.port,
            folder=folder,
            settings=self._settings,
            tls=self._certificate is not None,
        )

    def unbound(self, specs: Sequence[str]) -> list[str]:
        # It says nowhere that it is ready. It listens on its port before it binds the first endpoint, and ends where
        # it cannot: so the endpoints are the sign for both. Trying the port as well would put a failed TLS handshake
        # into its log.
        return [spec for spec in specs if not addresses.accepts(spec)]
