"""Options that several commands have, as groups of their help."""

from __future__ import annotations

from ..edge.choice import FRONT_ENDS
from . import arguments as read
from .logs import LEVELS
from .options import Group, Options

__all__ = ["DEFAULT_BIND", "application", "control_socket", "front_end", "limits", "process", "retry"]

DEFAULT_BIND = "127.0.0.1:8000"


def application(options: Options, *, reload: bool = False) -> None:
    """What is served, and how."""
    group = options.group("the application")
    group.add(
        "app",
        metavar="MODULE[:APP]",
        nargs="?",
        help="where it is: a module and a name in it (application or app), or a call that makes it: "
        "'shop:create_app()'",
    )
    group.add("--app-dir", metavar="FOLDER", default="", help="where the module is looked for first (here)")
    if reload:
        group.add_switch("--reload", help="start anew when a file changes")
    group.add("--pool", metavar="N", type=read.count, help="how many requests at once; others wait (no limit)")
    group.add("--access-log", metavar="FILE", nargs="?", const="-", help="log requests to FILE, or to stderr (no log)")
    group.add(
        "--forwarded-allow-ips",
        metavar="LIST",
        type=read.proxies,
        help="proxies in front whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks with "
        "commas in between, or '*' ($FORWARDED_ALLOW_IPS, else 127.0.0.1,::1)",
    )


def process(options: Options) -> None:
    """What every program has that serves."""
    group = options.group("the process")
    group.add(
        "--env-file", metavar="FILE", help="variables, as lines NAME=VALUE, for the application and for this command"
    )
    group.add(
        "--graceful-timeout",
        metavar="SECONDS",
        type=read.seconds,
        default=30.0,
        help="what requests may take when the server ends, by SIGTERM or Ctrl-C (30)",
    )
    group.add("--log-level", choices=LEVELS, default="info", help="what the server logs to stderr (info)")


def front_end(options: Options, *, shared: bool = False) -> None:
    """Where requests come from; ``bind`` and ``connect`` exclude each other."""
    group = options.group("the front end: one of our own (--bind), or a Mongrel2 that runs (--connect)")
    group.add(
        "--bind",
        metavar="ADDRESS",
        type=read.address,
        help=f"where it listens: HOST:PORT, a port of every address of this machine, or unix:/path ({DEFAULT_BIND})",
    )
    group.add(
        "--front-end",
        choices=FRONT_ENDS,
        default="auto",
        help="which one of our own: mongrel2, the embedded one (edge), or mongrel2 where it is installed (auto)",
    )
    group.add("--certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    group.add("--keyfile", metavar="FILE", help="the certificate's key (in the same file)")
    group.add_repeated(
        "--set",
        metavar="NAME=VALUE",
        type=read.setting,
        help="a setting of Mongrel2's, such as limits.content_length=1000000; may be repeated",
    )
    group.add_repeated(
        "--connect",
        metavar="URL",
        type=read.url,
        help="a handler entry: mongrel2://SENDER@HOST?pull=9999&pub=9998, and control=ENDPOINT for its control port; "
        "may be repeated",
    )
    if shared:
        group.add_switch(
            "--shared",
            help="other processes serve the same handler entry (--connect); WebSockets are refused then",
        )
    group.add("--upload-store", metavar="PATH", help="its upload.temp_store, as this process sees it")
    group.add(
        "--origins",
        metavar="LIST",
        type=read.origins,
        help="which pages may open a WebSocket: 'same', https://example.org, 'none' for programs, with commas in "
        "between; others get 403 (any page of the web)",
    )


def retry(group: Group) -> None:
    """What becomes of the requests of a process that died."""
    group.add(
        "--retry",
        metavar="METHODS",
        type=read.methods,
        help="which requests go to another process, once, where one died over them, with commas in between; where its "
        "machine vanished only with Mongrel2's download.flow_control, else their connections are closed "
        "(GET,HEAD,OPTIONS)",
    )


def limits(options: Options, *, websockets: bool = True) -> None:
    """What a peer may make grow.

    Args:
        websockets: They are this process's, and not a relay's.
    """
    group = options.group("limits")
    group.add(
        "--max-queue-bytes",
        metavar="BYTES",
        type=read.count,
        help="what may wait for one connection, WebSocket messages and pipelined requests (16 MiB)",
    )
    group.add("--max-pending-bytes", metavar="BYTES", type=read.count, help="the same for all connections (128 MiB)")
    if not websockets:
        return
    group.add(
        "--max-message-size",
        metavar="BYTES",
        type=read.size,
        help="the largest message that a WebSocket may bring; 0 means unlimited (16 MiB)",
    )
    group.add(
        "--ping-timeout",
        metavar="SECONDS",
        type=read.seconds,
        help="how often WebSockets are pinged, and how long a pong may take; 0 means never (30)",
    )


def control_socket(options: Options) -> None:
    """The socket that obeys commands, and the keys."""
    group = options.group("the control socket")
    group.add("--control", metavar="HOST:PORT", default="", help="where it binds; port 0: a free one (none)")
    group.add_repeated(
        "--control-allow",
        metavar="NETWORK",
        help="whom it answers, as 10.0.0.0/8; may be repeated (loopback, private and link-local addresses)",
    )
    group.add("--curve-secret", metavar="FILE", default="", help="our CURVE keys, NAME.key_secret of `greentx keys`")
    group.add_repeated(
        "--curve-allow",
        metavar="PATH",
        help="public keys of those that it answers then: a folder of *.key files, or one file; may be repeated",
    )
