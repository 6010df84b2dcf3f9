"""What do building, parsing, validating, masking and deflating WebSocket frames cost, in microseconds each?

No I/O: ``python benchmarks/bench_frames.py [--traffic varied|same] [--sizes 16 125 1024 ...] [--time 0.05]
[--repeat 5] [--json]``. A figure is the best of the repeats, in CPU time of this process; the percentage is how much
slower the median was, and above 20 % the machine was too busy to compare by. With ``--traffic same`` one message is
sent again and again, which deflate with a context makes nearly nothing of. It does not show what Mongrel2, ZeroMQ and
the registry add to a message, nor deflating of anything but words in JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import _traffic
from _common import about

from greentx.protocol.websocket.deflate import DeflateConfig, PerMessageDeflate, accept, negotiate, offer
from greentx.protocol.websocket.frames import (
    FrameParser,
    MessageAssembler,
    Opcode,
    build_frame,
    parse_flags,
    validate_message,
)
from greentx.protocol.websocket.masking import apply_mask, apply_mask_in_python

SIZES = (16, 125, 1024, 16384, 65536, 1 << 20)
#: Bytes of all the different messages of one size, and how many they are at least and at most.
TOTAL, LEAST, MOST = 4 << 20, 4, 1024

T = TypeVar("T")


def measure(work: Callable[[], object], seconds: float, repeat: int) -> tuple[float, float]:
    """Microseconds of CPU per call of *work*: the best of *repeat* runs, and the median's share above it."""
    count = 1
    while True:
        start = time.process_time()
        for _ in range(count):
            work()
        spent = time.process_time() - start
        if spent >= seconds / 4:
            break
        count *= 2
    count = max(1, round(count * seconds / spent))
    runs = []
    for _ in range(repeat):
        start = time.process_time()
        for _ in range(count):
            work()
        runs.append((time.process_time() - start) / count * 1e6)
    return min(runs), statistics.median(runs) / min(runs) - 1


def in_turn(work: Callable[[T], object], inputs: Sequence[T]) -> Callable[[], object]:
    """Return what calls *work* with the next of *inputs* each time, round and round."""
    following = itertools.cycle(inputs).__next__
    return lambda: work(following())


def agreed(config: DeflateConfig) -> tuple[PerMessageDeflate, PerMessageDeflate]:
    """A server's and a client's end of one connection."""
    server = negotiate(offer(config), config)
    assert server is not None
    client = accept(server[1], config)
    assert client is not None
    return server[0], client


def fragmented(text: bytes) -> bytes:
    """Two frames of one message."""
    half = len(text) // 2
    return build_frame(text[:half], Opcode.TEXT, fin=False) + build_frame(text[half:], Opcode.CONT)


def cases(size: int, traffic: str) -> dict[str, Callable[[], object]]:
    """All that is measured with payloads of *size* bytes, by name."""
    count = max(LEAST, min(MOST, TOTAL // size))
    texts = [text.encode() for text in _traffic.texts(traffic, size, count, exact=True)]
    source = random.Random(_traffic.SEED)
    masked = [(text, source.randbytes(4)) for text in texts]
    parser, masked_parser, join = FrameParser(require_mask=False), FrameParser(require_mask=True), MessageAssembler()

    def validate(flags: str) -> Callable[[bytes], object]:
        return lambda text: validate_message(*parse_flags(flags), text, max_size=1 << 20)

    return {
        "build": in_turn(build_frame, texts),
        "build, RSV1": in_turn(lambda text: build_frame(text, 1, 4), texts),
        "build, masked": in_turn(lambda one: build_frame(one[0], mask=one[1]), masked),
        "mask alone": in_turn(lambda one: apply_mask(*one), masked),
        "mask alone, standard library": in_turn(lambda one: apply_mask_in_python(*one), masked),
        "parse": in_turn(parser.feed, [build_frame(text) for text in texts]),
        "parse, masked": in_turn(masked_parser.feed, [build_frame(text, mask=mask) for text, mask in masked]),
        "parse and join 2 fragments": in_turn(
            lambda data: [join.add(frame) for frame in parser.feed(data)], [fragmented(text) for text in texts]
        ),
        "flags and validate (text)": in_turn(validate("0x81"), texts),
        "flags and validate (binary)": in_turn(validate("0x82"), texts),
        **deflate_cases("with context", DeflateConfig(threshold=0), texts),
        **deflate_cases(
            "without context",
            DeflateConfig(threshold=0, server_no_context_takeover=True, client_no_context_takeover=True),
            texts,
        ),
    }


def deflate_cases(name: str, config: DeflateConfig, texts: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    """Those of one way to deflate."""
    server, _ = agreed(config)
    found = {f"deflate, {name}": in_turn(server.encode, texts)}
    _, client = agreed(config)
    # What was made without a context may be inflated again and again with one.
    alone = [data for data, compressed in map(server.encode_alone, texts) if compressed]
    if alone:
        found[f"inflate, {name}"] = in_turn(lambda data: client.decode(data, 1 << 20), alone)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="payload sizes in bytes")
    arguments.add_argument("--time", type=float, default=0.05, help="seconds of CPU of one run")
    arguments.add_argument("--repeat", type=int, default=5, help="runs of which the best counts")
    arguments.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    options = arguments.parse_args()
    results = []
    for size in options.sizes:
        for name, work in cases(size, options.traffic).items():
            best, spread = measure(work, options.time, options.repeat)
            results.append({"what": name, "size": size, "us": round(best, 3), "spread": round(spread, 3)})
            if not options.json:
                busy = "  busy machine" if spread > 0.2 else ""
                print(f"{size:>8} B  {name:<28} {best:>10.3f} us  +{spread:.0%}{busy}", flush=True)
    if options.json:
        settings = {"traffic": options.traffic, "zlib": zlib.ZLIB_RUNTIME_VERSION}
        print(json.dumps({"benchmark": "frames", **about(), **settings, "results": results}))


if __name__ == "__main__":
    main()
