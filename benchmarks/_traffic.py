"""The requests and messages that the benchmarks send: each one different, as from many people, or one again and again.

``varied`` traffic is made from a seed, so every run sends the same. Each request has a path, query, cookie, user agent
and request id of its own. Its headers are those of a browser, an app, a command-line client, an API client or a proxy.
One in eight has a body, one in eight a header that comes more than once. ``same`` traffic is one request, or one
message: it flatters whatever remembers what it has seen, so no figure that is claimed comes from it.

A request is written in two ways: as a client sends it (:meth:`HttpRequest.raw`) and as Mongrel2 hands it to a handler
(:meth:`HttpRequest.message`). All fit a Mongrel2 with its default limits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, urlencode

from greentx.protocol.requests import build_request

KINDS = ("varied", "same")
#: How many requests of varied traffic differ: more than any memory of requests keeps.
DISTINCT = 16384
SEED = 13
#: One request in so many has a body, and another one a header that comes more than once.
ONE_IN = 8
MAX_BODY = 12000

#: Mongrel2's own headers behind the client's, with JSON.
JSON_ORDER = ("METHOD", "VERSION", "URI", "QUERY", "PATTERN", "URL_SCHEME", "REMOTE_ADDR")

Fields = list[tuple[str, str]]

_VOCABULARY = """
account amber archive basket beach billing blue border bridge candle catalog chart city cloud comment copper
country delta design detail device draft editor engine event export feature field filter forest garden gift
glass green group harbor history hotel image import index invite island kitchen label lake letter library light
list market matter message method mirror mobile morning museum music native night note number ocean offer option
orange order other output page paper party pattern people phone photo place plan planet price print profile
project public quiet reader record region report result river route sale sample school search season series
setting shadow shop signal silver simple source space spring station stone store story street summer system
table team ticket timer tower track travel update user valley video view village visit voice water week window
winter
"""
WORDS = _VOCABULARY.split()
NAMES = ("Zoë", "José", "Åsa", "Łukasz", "Мария", "李明", "Anna", "Tom")
LANGUAGES = (
    "en-US,en;q=0.5",
    "en-GB,en;q=0.9",
    "de-DE,de;q=0.9,en;q=0.8",
    "fr,en;q=0.7",
    "ja",
    "pt-BR,pt;q=0.9,en;q=0.6",
)
SYSTEMS = (
    "X11; Linux x86_64",
    "Windows NT 10.0; Win64; x64",
    "Macintosh; Intel Mac OS X 10_15_7",
    "Linux; Android 14; Pixel 8",
    "iPhone; CPU iPhone OS 17_5 like Mac OS X",
)
PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@dataclasses.dataclass(frozen=True)
class HttpRequest:
    """One HTTP/1.1 request that leaves its connection open.

    Attributes:
        method: ``GET``, ``POST`` or ``PUT``.
        target: Path and query, percent-encoded, as in the request line.
        fields: Names and values as the client writes them, in its order; ``Content-Length`` is there with a body.
        body: Bytes, often none.
        address: The client's, which Mongrel2 says in ``REMOTE_ADDR`` and ``x-forwarded-for``.
    """

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes = b""
    address: str = "127.0.0.1"

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def raw(self) -> bytes:
        """The request as text of HTTP/1.1, with its body."""
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body

    def headers(self) -> dict[str, str | list[str]]:
        """What the client said, as Mongrel2 keeps it: names in lower case, a name that comes again has a list."""
        found: dict[str, str | list[str]] = {}
        for field, value in self.fields:
            name = field.lower()
            known = found.get(name)
            if known is None:
                found[name] = value
            else:
                found[name] = [*known, value] if isinstance(known, list) else [known, value]
        found["x-forwarded-for"] = self.address  # Mongrel2 replaces the client's
        return found

    def handshake_headers(self) -> dict[str, str | list[str]]:
        """Return the headers that a browser which is like this client sends when it opens a WebSocket."""
        own = ("host", "connection", "content-type", "content-length")
        return {name: value for name, value in self.headers().items() if name not in own}

    def message(self, sender: str, conn_id: int, protocol: str = "tnetstring") -> bytes:
        """The request as Mongrel2 writes it to a handler.

        With tnetstring its own headers are in front; with JSON its PATH is, and the others are behind (probed). The
        client's are in the order of a hash: here one that does not change.
        """
        path, mark, query = self.target.partition("?")
        own = {"REMOTE_ADDR": self.address, "METHOD": self.method, "URL_SCHEME": "http", "PATTERN": "/"}
        if mark:
            own["QUERY"] = query
        own |= {"URI": self.target, "VERSION": "HTTP/1.1", "PATH": path}
        client = dict(sorted(self.headers().items(), key=lambda item: zlib.crc32(item[0].encode())))
        if protocol == "tnetstring":
            every = {**own, **client}
        else:
            every = {"PATH": path, **client, **{name: own[name] for name in JSON_ORDER if name in own}}
        return build_request(sender, conn_id, path, every, self.body, protocol=protocol)


#: The one request of ``same`` traffic.
SAME = HttpRequest(
    "GET",
    "/hello/world?name=value",
    (
        ("Host", "www.example.org"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("Accept", PAGE),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
    ),
)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--traffic`` to the command line of a benchmark."""
    parser.add_argument(
        "--traffic", choices=KINDS, default="varied", help="all that is sent differs, or one again and again (varied)"
    )


def requests(traffic: str = "varied", count: int = DISTINCT, seed: int = SEED) -> list[HttpRequest]:
    """Return the requests to send in turn: *count* different ones, or with ``same`` the one."""
    return [SAME] if traffic == "same" else list(made_up(count, seed))


def made_up(count: int = DISTINCT, seed: int = SEED) -> Iterator[HttpRequest]:
    """Yield *count* different requests, each made when it is asked for."""
    source = random.Random(seed)
    for number in range(count):
        yield _request(source, number)


def messages(
    traffic: str, sender: str, connections: int, protocol: str = "tnetstring", count: int = DISTINCT
) -> list[bytes]:
    """Return requests as Mongrel2 writes them, from so many connections in turn.

    *count* is a multiple of *connections*: sent round and round, the connections always have their turns.
    """
    found = requests(traffic, count)
    length = max(len(found), connections)
    return [found[number % len(found)].message(sender, number % connections + 1, protocol) for number in range(length)]


def write_raw(path: str | os.PathLike[str], found: Iterable[HttpRequest]) -> None:
    """Write requests to a file that other programs read, such as a script for ``wrk``.

    Each is its length in bytes, in decimal, a line feed, and its text. In Lua: ``size = file:read("*n")``,
    ``file:read(1)``, ``text = file:read(size)``, until *size* is nil.
    """
    with open(path, "wb") as file:
        for one in found:
            text = one.raw()
            file.write(b"%d\n%b" % (len(text), text))


def texts(
    traffic: str = "varied", size: int = 100, count: int = 1024, *, exact: bool = False, seed: int = SEED
) -> list[str]:
    """Return messages of a chat, ASCII: *count* different ones, or with ``same`` a single one of *size* bytes.

    The different ones have sizes from half of *size* to one and a half, with *exact* all have *size*.
    """
    source = random.Random(seed)
    if traffic == "same":
        return [_text(source, size)]
    least, most = (size, size) if exact else (max(1, size // 2), size + size // 2)
    return [_text(source, source.randint(least, most)) for _ in range(count)]


# -- how a request is made up ------------------------------------------------------------------------------------------


def _request(source: random.Random, number: int) -> HttpRequest:
    target = _target(source, number)
    fields = [("Host", source.choice(("www.example.org", "example.org", "api.example.com", "shop.example.net:8000")))]
    fields += source.choice(CLIENTS)(source)
    fields.append(("Cookie", _cookie(source)))
    fields.append(("X-Request-Id", _hex(source, 32)))
    method, body = "GET", b""
    if number % ONE_IN == ONE_IN - 1:
        method = source.choice(("POST", "POST", "POST", "PUT"))
        kind, body = _body(source)
        fields += [("Content-Type", kind), ("Content-Length", str(len(body)))]
    elif number % ONE_IN == 3:
        fields += _repeated(source)
    address = f"203.0.{source.randrange(114)}.{source.randrange(1, 255)}"
    return HttpRequest(method, target, tuple(fields), body, address)


def _target(source: random.Random, number: int) -> str:
    parts = [source.choice(WORDS) for _ in range(source.randint(1, 4))]
    if source.random() < 0.1:
        parts.append(quote(source.choice(NAMES)))
    # The number makes it different from all others.
    path = "/".join(["", *parts, f"{number:x}{source.choice(('', '', '.html', '.json'))}"])
    pairs = [(source.choice(WORDS), source.choice(WORDS)) for _ in range(source.randint(0, 4))]
    if source.random() < 0.2:
        pairs.append(("q", f"{source.choice(NAMES)} {source.choice(WORDS)} & {source.choice(WORDS)}"))
    if source.random() < 0.1:
        pairs += [("tag", source.choice(WORDS)), ("tag", source.choice(WORDS)), ("empty", "")]
    pairs.append(("id", _hex(source, 12)))
    return f"{path}?{urlencode(pairs)}"


def _hex(source: random.Random, digits: int) -> str:
    return f"{source.getrandbits(4 * digits):0{digits}x}"


def _cookie(source: random.Random) -> str:
    pairs = [f"session={_hex(source, source.choice((32, 40, 64)))}", f"theme={source.choice(('dark', 'light'))}"]
    if source.random() < 0.6:
        pairs.append(f"_ga=GA1.1.{source.randrange(10**9)}.{source.randrange(10**9)}")
    if source.random() < 0.3:
        pairs.append(f"csrftoken={_hex(source, 64)}")
    if source.random() < 0.1:
        pairs.append(f"prefs={quote(json.dumps({'list': source.choice(WORDS), 'size': source.randrange(100)}))}")
    return "; ".join(pairs)


def _version(source: random.Random) -> str:
    """Return a version that hardly any other client has."""
    return f"{source.randint(100, 140)}.0.{source.randrange(10000)}.{source.randrange(10000)}"


def _firefox(source: random.Random) -> Fields:
    agent = f"Mozilla/5.0 ({source.choice(SYSTEMS)}; rv:128.0) Gecko/20100101 Firefox/{_version(source)}"
    return [
        ("User-Agent", agent),
        ("Accept", PAGE),
        ("Accept-Language", source.choice(LANGUAGES)),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Referer", f"https://www.example.org/{source.choice(WORDS)}/{source.choice(WORDS)}"),
        ("Connection", "keep-alive"),
        ("Upgrade-Insecure-Requests", "1"),
        ("Sec-Fetch-Dest", "document"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Priority", "u=0, i"),
    ]


def _chrome(source: random.Random) -> Fields:
    version = _version(source)
    engine = "AppleWebKit/537.36 (KHTML, like Gecko)"
    major = version.partition(".")[0]
    return [
        ("Connection", "keep-alive"),
        ("sec-ch-ua", f'"Chromium";v="{major}", "Not:A-Brand";v="24", "Google Chrome";v="{major}"'),
        ("sec-ch-ua-mobile", "?0"),
        ("sec-ch-ua-platform", source.choice(('"Linux"', '"Windows"', '"macOS"'))),
        ("User-Agent", f"Mozilla/5.0 ({source.choice(SYSTEMS)}) {engine} Chrome/{version} Safari/537.36"),
        ("Accept", source.choice((PAGE, "*/*", "application/json, text/plain, */*"))),
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Mode", "cors"),
        ("Sec-Fetch-Dest", "empty"),
        ("Referer", f"https://www.example.org/{source.choice(WORDS)}?page={source.randrange(1000)}"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Accept-Language", source.choice(LANGUAGES)),
    ]


def _safari(source: random.Random) -> Fields:
    engine = f"AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{source.randrange(10000)} Mobile/{_hex(source, 6)}"
    return [
        ("Accept", PAGE),
        ("Accept-Language", source.choice(LANGUAGES)),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("User-Agent", f"Mozilla/5.0 ({SYSTEMS[4]}) {engine} Safari/604.1"),
        ("Connection", "keep-alive"),
    ]


def _curl(source: random.Random) -> Fields:
    return [("User-Agent", f"curl/8.{source.randrange(100000)}.{source.randrange(100000)}"), ("Accept", "*/*")]


def _api_client(source: random.Random) -> Fields:
    name = source.choice(("python-requests/2", "okhttp/4", "axios/1", "Go-http-client/1", "ExampleApp/7"))
    return [
        ("User-Agent", f"{name}.{source.randrange(100000)}.{source.randrange(100000)}"),
        ("Accept-Encoding", "gzip, deflate"),
        ("Accept", "application/json"),
        ("Connection", "keep-alive"),
        ("Authorization", f"Bearer {_hex(source, source.choice((40, 160, 400)))}"),
        ("X-Api-Version", f"2026-{source.randint(1, 12):02}-01"),
    ]


def _behind_proxy(source: random.Random) -> Fields:
    address = f"198.51.100.{source.randrange(1, 255)}"
    return [
        ("X-Real-IP", address),
        ("X-Forwarded-For", f"{address}, 10.0.0.{source.randrange(1, 255)}"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.example.org"),
        ("Via", f"1.1 edge-{source.randrange(1000)}.example.net"),
        ("traceparent", f"00-{_hex(source, 32)}-{_hex(source, 16)}-01"),
        *source.choice((_firefox, _chrome, _safari))(source),
    ]


#: Browsers come more often than the others.
CLIENTS: tuple[Callable[[random.Random], Fields], ...] = (
    _firefox, _chrome, _chrome, _chrome, _safari, _curl, _api_client, _behind_proxy,
)  # fmt: skip


def _repeated(source: random.Random) -> Fields:
    """Return headers that the request has already, or that come twice."""
    return source.choice(
        (
            [("Cookie", f"extra={_hex(source, 16)}"), ("Cookie", f"more={source.choice(WORDS)}")],
            [("Cache-Control", "no-cache"), ("Cache-Control", "no-transform")],
            [("Via", "1.1 a.example.net"), ("Via", f"1.1 cache-{source.randrange(1000)}.example.net")],
            [("X-Forwarded-Server", source.choice(WORDS)), ("X-Forwarded-Server", source.choice(WORDS))],
        )
    )


def _body(source: random.Random) -> tuple[str, bytes]:
    """Return its content type, and a body: small ones come more often than large ones."""
    size = round(math.exp(source.uniform(math.log(20), math.log(MAX_BODY))))
    if source.random() < 0.5:
        return "application/json", json.dumps({"id": _hex(source, 16), "text": _text(source, size)}).encode()
    fields = {"csrf": _hex(source, 32), "name": source.choice(NAMES), "text": _text(source, size)}
    return "application/x-www-form-urlencoded", urlencode(fields).encode()


def _text(source: random.Random, size: int) -> str:
    """Return exactly *size* bytes: JSON as a chat sends it, or for a small size a number and words."""
    number = _hex(source, 12)
    start = f'{{"type": "message", "id": "{number}", "room": "{source.choice(WORDS)}", "text": "'
    end = '"}'
    if size < 100:
        start, end = f"{number} ", ""
    # No word is shorter than three letters.
    words = " ".join(source.choices(WORDS, k=size // 4 + 1))
    return (start + words)[: size - len(end)] + end
