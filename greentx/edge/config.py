"""Mongrel2's configuration as text, made from values that were checked. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..endpoints import bind_endpoint, endpoint_address
from ..errors import LocalProtocolError
from ..wire import check_sender

__all__ = ["DEFAULT_SETTINGS", "SERVER_UUID", "Handler", "checked_settings", "render"]

#: Names the server in its database, and its certificate's files. One database has one server here.
SERVER_UUID = "greentx"

DEFAULT_SETTINGS: Mapping[str, int | str] = {
    # The parent waits for its child; a daemon would have left it.
    "server.daemonize": 0,
    # Lines of the access log would pile up in a temporary folder that nobody reads.
    "disable.access_logging": 1,
    # A block of headers larger than this is answered 400. Mongrel2's own 4096 is less than browsers with
    # single-sign-on cookies send.
    "limits.buffer_size": 16384,
    # The largest body that a request message brings inline; beyond it the answer is 413, unless upload.temp_store or
    # upload.stream is set. Mongrel2's own 20480 refuses ordinary forms. Never less than buffer_size: an upload hung.
    "limits.content_length": 1048576,
    # The three limits that end idle connections are off. Their defaults end each one whose client is silent for 120 s,
    # be it a WebSocket, a long poll or a page that takes long, without telling the handler. Whether a WebSocket
    # lives is found out by pings; a peer whose machine is gone, by the system's TCP keep-alive.
    "limits.min_ping": 0,
    "limits.min_read_rate": 0,
    "limits.min_write_rate": 0,
    "net.tcp_keepalive": 1,
    # Seconds between two looks at the limits above, for those who set them: 120 s then means 120 to 130 s.
    "limits.tick_timer": 10,
}


@dataclass(frozen=True)
class Handler:
    """One handler entry of a configuration: where Mongrel2 sends requests and hears replies.

    Entries that are equal are one entry, so that several routes may lead to it.

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
                endpoint_address(spec)  # refuses port 0: nobody would know which one it became
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


def checked_settings(overrides: Mapping[str, int | str] | None) -> dict[str, int | str]:
    """Return :data:`DEFAULT_SETTINGS` with *overrides* put over them.

    Raises:
        LocalProtocolError: A combination under which Mongrel2 would not work; the message says why.
    """
    settings = {**DEFAULT_SETTINGS, **(overrides or {})}
    if settings["server.daemonize"] != 0:
        raise LocalProtocolError("setting 'server.daemonize' has to stay 0: the server is a child of this process")
    size, length = settings["limits.buffer_size"], settings["limits.content_length"]
    if int(length) < int(size):
        raise LocalProtocolError(
            f"limits.content_length {length} is less than limits.buffer_size {size}: uploads would hang"
        )
    return settings


def render(
    routes: Mapping[str, Handler],
    *,
    host: str,
    port: int,
    folder: str,
    settings: Mapping[str, int | str],
    tls: bool = False,
) -> str:
    """Return the text that ``m2sh load`` reads.

    Args:
        routes: Handlers with their endpoints filled in, by path.
        host: A numeric address: Mongrel2 looks no names up.
        folder: An absolute path; its PID file and control socket get into it, and with *tls* it holds
            ``greentx.crt`` and ``greentx.key``.

    Raises:
        LocalProtocolError: A value that the syntax cannot hold; the message shows it.
    """
    names = {handler: f"handler{_letters(number)}" for number, handler in enumerate(_distinct(routes.values()))}
    lines = [
        f"{name} = Handler(send_spec={_quote(handler.send_spec)}, send_ident={_quote(handler.sender)},\n"
        f"    recv_spec={_quote(handler.recv_spec)}, recv_ident={_quote(handler.recv_ident)},\n"
        f"    raw_payload={handler.raw_payload}, protocol={_quote(handler.protocol)})"
        for handler, name in names.items()
    ]
    targets = ",\n    ".join(f"{_quote(path)}: {names[handler]}" for path, handler in routes.items())
    if tls:
        settings = {**settings, "certdir": f"{folder}/"}
    values = ",\n    ".join(f"{_quote(name)}: {_value(value)}" for name, value in settings.items())
    lines.append(
        # Its log goes to where its first lines go anyway, so that one reader gets all of it in order.
        f'main = Server(uuid="{SERVER_UUID}", name="main", access_log="/dev/null", error_log="/dev/stderr",\n'
        f"    pid_file={_quote(folder + '/pid')}, control_port={_quote(f'ipc://{folder}/control')},\n"
        f'    default_host="localhost", bind_addr={_quote(host)}, port={port}, use_ssl={int(tls)},\n'
        f'    hosts=[Host(name="localhost", routes={{\n    {targets}}})])\n'
        f"settings = {{\n    {values}}}\n"
        "servers = [main]\n"
    )
    return "\n".join(lines)


def _distinct(handlers: Iterable[Handler]) -> list[Handler]:
    return list(dict.fromkeys(handlers))


def _letters(number: int) -> str:
    # Names in a configuration are letters only (probed): a, b, ... z, ba, bb, ...
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text = chr(ord("a") + digit) + text
        if not number:
            return text


def _value(value: int | str) -> str:
    return str(int(value)) if isinstance(value, int) else _quote(value)


def _quote(value: str | None) -> str:
    # The syntax has no escapes: a backslash stays one, except before a quote (probed).
    if not isinstance(value, str) or '"' in value or value.endswith("\\") or not value.isprintable():
        raise LocalProtocolError(f"{value!r} cannot stand in Mongrel2's configuration: no quotes or control characters")
    return f'"{value}"'
