"""What does the embedded front end spend on reading a request, in microseconds of CPU?

No I/O: ``python benchmarks/bench_front.py [--traffic varied|same] [--time 0.05] [--repeat 5] [--json]``. Figures as in
``bench_frames.py``. It does not show what sockets, ZeroMQ, routing and the message to the handler add.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import _traffic
import httptools
from _common import about
from bench_frames import in_turn, measure

from greentx.edge.front.requests import RequestReader

#: In pieces of so many bytes, as some networks deliver a head.
PIECE = 500

POST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"


class _Nothing:
    """What httptools calls, and does nothing: the floor."""

    def on_header(self, name: bytes, value: bytes) -> None:
        pass


def cases(traffic: str) -> dict[str, Callable[[], object]]:
    """All that is measured, by name."""
    found = [one.raw() for one in _traffic.requests(traffic)]
    # Of the one that is the same there is none with a body.
    bodies = [data for data in found if not data.endswith(b"\r\n\r\n")] or [POST]
    reader = RequestReader()
    floor = httptools.HttpRequestParser(_Nothing())

    def in_pieces(data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            reader.feed(data[at : at + PIECE])

    chunked = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 3 + b"0\r\n\r\n"
    )
    return {
        "httptools alone": in_turn(floor.feed_data, found),
        "a request": in_turn(reader.feed, found),
        "a request with a body": in_turn(reader.feed, bodies),
        "a request with three chunks": in_turn(reader.feed, [chunked]),
        f"a request in pieces of {PIECE} bytes": in_turn(in_pieces, found),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--time", type=float, default=0.05, help="seconds of CPU of one run")
    arguments.add_argument("--repeat", type=int, default=5, help="runs of which the best counts")
    arguments.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    options = arguments.parse_args()
    results = []
    for name, work in cases(options.traffic).items():
        best, spread = measure(work, options.time, options.repeat)
        results.append({"what": name, "us": round(best, 3), "spread": round(spread, 3)})
        if not options.json:
            busy = "  busy machine" if spread > 0.2 else ""
            print(f"{name:<36} {best:>10.3f} us  +{spread:.0%}{busy}", flush=True)
    if options.json:
        print(json.dumps({"benchmark": "front", **about("httptools"), "traffic": options.traffic, "results": results}))


if __name__ == "__main__":
    main()
