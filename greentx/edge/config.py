"""Mongrel2's configuration: what may be said, checked, and the database that it is read from."""

from __future__ import annotations

import contextlib
import difflib
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LocalProtocolError
from ..protocol.fields import check_sender
from ..transport.endpoints import bind_endpoint, endpoint_address

__all__ = ["DEFAULT_SETTINGS", "SERVER_UUID", "Handler", "checked_settings", "idle_seconds", "write_database"]

#: Names the server in its database, and its certificate's files. One database has one server here.
SERVER_UUID = "greentx"

DEFAULT_SETTINGS: Mapping[str, int | str] = {
    # The parent waits for its child; a daemon would have left it.
    "server.daemonize": 0,
    # Lines of the access log would pile up in a temporary folder that nobody reads.
    "disable.access_logging": 1,
    # A head larger than this is answered 400. Mongrel2's own 4096 is less than browsers with single-sign-on cookies
    # send, and proxies let 32 KiB pass. It costs 3 KiB a connection, and what large heads really have (measured).
    "limits.buffer_size": 65536,
    # Headers beyond this number are dropped without a word, a Content-Length among them (probed): more than fit into
    # such a head.
    "limits.header_count": 65536,
    # A head that arrives in more pieces is answered 400. Mongrel2's own 5 are those of a head of 7 KiB.
    "limits.client_read_retries": 100,
    # The largest body that a request message brings inline; beyond it the answer is 413, unless upload.temp_store or
    # upload.stream is set. Mongrel2's own 20480 refuses ordinary forms. Never less than buffer_size: an upload hung.
    "limits.content_length": 1048576,
    # What ends connections that hold a place for nothing: an idle keep-alive one, half a head or half a body. All three
    # limits have to be passed (src/register.c, Register_cleanout; probed): nothing was heard for min_ping seconds, and
    # the bytes read so far, divided by the seconds since the last of them, are below the rate; likewise those written.
    # So an upload or a download that goes on lives. What waits does so by others: a WebSocket, whose client answers
    # pings; a long poll, and a JSON socket, which a Transceiver keeps alive. Both need a ping_timeout of at most half
    # of min_ping. Mongrel2's own rates of 300 would leave one that read a page of 1 MB its place for an hour.
    "limits.min_ping": 120,
    "limits.min_read_rate": 1000,
    "limits.min_write_rate": 10000,
    "limits.kill_limit": 2,
    "net.tcp_keepalive": 1,
    # Seconds between two looks at these limits: 120 s mean 120 to 130 s.
    "limits.tick_timer": 10,
    # With these TLS is 1.2, with forward secrecy: its library knows no 1.3, and 1.0 and 1.1 are deprecated (RFC 8996).
    # One name that the library does not know would keep the server from starting (probed), so no newer ones.
    "ssl_ciphers": " ".join(
        f"TLS-ECDHE-{key}-WITH-AES-{cipher}"
        for cipher in ("128-GCM-SHA256", "256-GCM-SHA384")
        for key in ("ECDSA", "RSA")
    ),
    # Descriptors, so about the connections that are accepted; Mongrel2's own number is 10240.
    "superpoll.max_fd": 10240,
}

# What Mongrel2 1.12.2 looks for (probed, by the texts in the program). It ignores any other name without a word.
_KNOWN = frozenset(
    [
        "certdir",
        "control_port",
        "disable.access_logging",
        "download.flow_control",
        "limits.buffer_size",
        "limits.client_read_retries",
        "limits.connection_stack_size",
        "limits.content_length",
        "limits.dir_max_path",
        "limits.dir_send_buffer",
        "limits.fdtask_stack",
        "limits.handler_stack",
        "limits.handler_targets",
        "limits.header_count",
        "limits.host_name",
        "limits.kill_limit",
        "limits.mime_ext_len",
        "limits.min_ping",
        "limits.min_read_rate",
        "limits.min_write_rate",
        "limits.proxy_read_retries",
        "limits.proxy_read_retry_warn",
        "limits.tick_timer",
        "limits.url_path",
        "net.tcp_keepalive",
        "no_clobber_xff",
        "request.relaxed",
        "server.daemonize",
        "ssl.ca_chain",
        "ssl.verify_optional",
        "ssl.verify_required",
        "ssl_ciphers",
        "superpoll.hot_dividend",
        "superpoll.max_fd",
        "upload.stream",
        "upload.temp_store",
        "upload.temp_store_mode",
        "zeromq.threads",
    ]
)

# What the default for heads gives way to.
_SMALLEST_HEAD = 16384

# What ends a silent connection, min_ping first.
_IDLE_LIMITS = ("limits.min_ping", "limits.min_read_rate", "limits.min_write_rate")

# The tables that the server reads, with the columns that its queries name. mimetype, directory and proxy stay empty.
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
BEGIN;
CREATE TABLE server (id INTEGER PRIMARY KEY, uuid TEXT, access_log TEXT, error_log TEXT, chroot TEXT, pid_file TEXT,
    control_port TEXT, default_host TEXT, name TEXT, bind_addr TEXT, port INTEGER, use_ssl INTEGER);
CREATE TABLE host (id INTEGER PRIMARY KEY, server_id INTEGER, maintenance BOOLEAN, name TEXT, matching TEXT);
CREATE TABLE handler (id INTEGER PRIMARY KEY, send_spec TEXT, send_ident TEXT, recv_spec TEXT, recv_ident TEXT,
    raw_payload INTEGER, protocol TEXT);
CREATE TABLE route (id INTEGER PRIMARY KEY, path TEXT, reversed BOOLEAN DEFAULT 0, host_id INTEGER, target_id INTEGER,
    target_type TEXT);
CREATE TABLE setting (id INTEGER PRIMARY KEY, key TEXT, value TEXT);
CREATE TABLE proxy (id INTEGER PRIMARY KEY, addr TEXT, port INTEGER);
CREATE TABLE directory (id INTEGER PRIMARY KEY, base TEXT, index_file TEXT, default_ctype TEXT, cache_ttl INTEGER);
CREATE TABLE mimetype (id INTEGER PRIMARY KEY, mimetype TEXT, extension TEXT);
CREATE TABLE filter (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
CREATE TABLE xrequest (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
COMMIT;
"""


@dataclass(frozen=True)
class Handler:
    """One handler entry of a configuration: where Mongrel2 sends requests and hears replies.

    Entries that are equal are one entry, so that several routes may lead to it. Where endpoints are left to be made up,
    those are found in ``mongrel2.handlers``: this object stays as it is.

    Attributes:
        sender: The entry's ``send_ident``: letters, digits, ``-``.
        send_spec: The endpoint that Mongrel2 binds its PUSH to; ``None`` to have one made up.
        recv_spec: The same for its SUB.
        recv_ident: What it subscribes to; ``""`` for everything. A reply has to begin with it.
        protocol: How headers are written: ``"tnetstring"`` or ``"json"``.
        raw_payload: 1: replies to JSON and XML sockets go out as they are; 0: in base64.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that Mongrel2 could not use; the message names it.
    """

    sender: str
    send_spec: str | None = None
    recv_spec: str | None = None
    recv_ident: str = ""
    protocol: str = "tnetstring"
    raw_payload: int = 1

    def __post_init__(self) -> None:
        check_sender(self.sender)
        for spec in (self.send_spec, self.recv_spec):
            if spec is None:
                continue
            if bind_endpoint(spec).startswith("tcp://"):
                # Refuses port 0: nobody would know which one it became.
                endpoint_address(spec)
            elif not spec.startswith(("ipc:///", "ipc://@")):
                raise LocalProtocolError(
                    f"endpoint {spec!r} cannot be served: write 'tcp://host:port' or 'ipc:///path'"
                )
        if self.send_spec is not None and self.send_spec == self.recv_spec:
            raise LocalProtocolError(
                f"send_spec and recv_spec are both {self.send_spec!r}: only one socket can bind it"
            )
        if self.recv_ident:
            check_sender(self.recv_ident)
        if self.protocol not in ("tnetstring", "json"):
            raise LocalProtocolError(f"protocol {self.protocol!r} is unknown: write 'tnetstring' or 'json'")
        if self.raw_payload not in (0, 1):
            raise LocalProtocolError(f"raw_payload {self.raw_payload!r} is unknown: write 1 or 0")


def checked_settings(overrides: Mapping[str, int | str] | None, *, embedded: bool = False) -> dict[str, int | str]:
    """Return :data:`DEFAULT_SETTINGS` with *overrides* put over them.

    Args:
        embedded: They are for the embedded front end, which takes bodies inline that are smaller than heads may be.

    Raises:
        LocalProtocolError: A name that is mistyped; a value, or a combination, with which the server would not work.
            The message says why.
    """
    settings = {**DEFAULT_SETTINGS, **(overrides or {})}
    for name in settings.keys() - _KNOWN:
        # Only what is meant for one that we know: another Mongrel2 may know more.
        if meant := difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.8):
            raise LocalProtocolError(f"setting {name!r} is not one of Mongrel2's; did you mean {meant[0]!r}?")
    if settings["server.daemonize"] != 0:
        raise LocalProtocolError("setting 'server.daemonize' has to stay 0: the server is a child of this process")
    # Those that are looked at here and in idle_seconds().
    for name in ("limits.buffer_size", "limits.content_length", "limits.kill_limit", *_IDLE_LIMITS):
        if not str(settings[name]).isdecimal():
            raise LocalProtocolError(f"setting {name} is {settings[name]!r}, which is not a whole number")
    if embedded:
        return settings
    size, length = settings["limits.buffer_size"], settings["limits.content_length"]
    if "limits.buffer_size" not in (overrides or {}):
        # Smaller bodies inline can be asked for without knowing our default for heads.
        size = settings["limits.buffer_size"] = min(int(size), max(int(length), _SMALLEST_HEAD))
    if int(length) < int(size):
        raise LocalProtocolError(
            f"limits.content_length {length} is less than limits.buffer_size {size}: uploads would hang"
        )
    return settings


def idle_seconds(settings: Mapping[str, int | str]) -> int | None:
    """Return after how many seconds a server with these settings ends a silent connection; ``None``: never."""
    # One point for each limit that is passed, and 0 switches one off (src/register.c, Register_cleanout).
    limits = [int(settings[name]) for name in _IDLE_LIMITS]
    on = sum(limit > 0 for limit in limits)
    return limits[0] if limits[0] > 0 and on > int(settings["limits.kill_limit"]) else None


def write_database(
    path: str,
    routes: Mapping[str, Handler],
    *,
    host: str,
    port: int,
    folder: str,
    settings: Mapping[str, int | str],
    tls: bool = False,
) -> None:
    """Write the SQLite database that ``mongrel2`` is started with; what is at *path* is replaced.

    It is written here, not by Mongrel2's own tool ``m2sh``, because that one ends with a double free when two handlers
    have ``raw_payload=1`` (probed, 1.12.2).

    Args:
        routes: Handlers with their endpoints filled in, by path.
        host: A numeric address: Mongrel2 looks no names up.
        folder: An absolute path; its PID file and control socket get into it, and with *tls* it holds
            ``greentx.crt`` and ``greentx.key``.

    Raises:
        LocalProtocolError: (a ``ValueError``) a path or a setting has control characters; the message shows it.

    Source: mongrel2 src/config/module.c, the queries; m2sh's config.sql.
    """
    handlers = {handler: number for number, handler in enumerate(dict.fromkeys(routes.values()), 1)}
    if tls:
        settings = {**settings, "certdir": f"{folder}/"}
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(_SCHEMA)
        # Its log goes to where its first lines go anyway, so that one reader gets all of it in order. No chroot.
        database.execute(
            "INSERT INTO server VALUES (1, ?, '/dev/null', '/dev/stderr', '', ?, ?, 'localhost', 'main', ?, ?, ?)",
            (SERVER_UUID, f"{folder}/pid", f"ipc://{folder}/control", host, port, int(tls)),
        )
        database.execute("INSERT INTO host VALUES (1, 1, 0, 'localhost', 'localhost')")
        database.executemany(
            "INSERT INTO handler VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (number, one.send_spec, one.sender, one.recv_spec, one.recv_ident, one.raw_payload, one.protocol)
                for one, number in handlers.items()
            ],
        )
        database.executemany(
            "INSERT INTO route (path, host_id, target_id, target_type) VALUES (?, 1, ?, 'handler')",
            [(_checked(route), handlers[handler]) for route, handler in routes.items()],
        )
        database.executemany(
            "INSERT INTO setting (key, value) VALUES (?, ?)",
            [
                (_checked(name), str(int(value)) if isinstance(value, int) else _checked(value))
                for name, value in settings.items()
            ],
        )


def _checked(text: str) -> str:
    if not isinstance(text, str) or not text.isprintable():
        raise LocalProtocolError(f"{text!r} cannot stand in Mongrel2's configuration: it has control characters")
    return text
