"""What do building, parsing, validating, masking and deflating WebSocket frames cost, in microseconds each?

No I/O: ``python benchmarks/bench_frames.py [--sizes 16 125 1024 ...] [--time 0.05] [--repeat 5] [--json]``. A figure is
the best of the repeats, in CPU time of this process; the percentage is how much slower the median was, and above 20 %
the machine was too busy to compare by. It does not show what Mongrel2, ZeroMQ and the registry add to a message, nor
deflating of anything but JSON that resembles itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
import zlib
from collections.abc import Callable
from functools import partial

from greentx.protocol.websocket.deflate import DeflateConfig, PerMessageDeflate, accept, negotiate, offer
from greentx.protocol.websocket.frames import (
    FrameParser,
    MessageAssembler,
    Opcode,
    apply_mask,
    build_frame,
    parse_flags,
    validate_message,
)

SIZES = (16, 125, 1024, 16384, 65536, 1 << 20)
MASK = b"\x37\xfa\x21\x3d"
WORDS = b'{"type": "message", "room": "lobby", "text": "what is said in it", "id": 1234567}, '


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


def parsing(parser: FrameParser, data: bytes) -> Callable[[], object]:
    return lambda: parser.feed(data)


def agreed(config: DeflateConfig) -> tuple[PerMessageDeflate, PerMessageDeflate]:
    """A server's and a client's end of one connection."""
    server = negotiate(offer(config), config)
    assert server is not None
    client = accept(server[1], config)
    assert client is not None
    return server[0], client


def cases(size: int) -> dict[str, Callable[[], object]]:
    """All that is measured with a payload of *size* bytes, by name."""
    text = (WORDS * (size // len(WORDS) + 1))[:size]
    fragments = [
        build_frame(text[: size // 2], Opcode.TEXT, fin=False),
        build_frame(text[size // 2 :], Opcode.CONT),
    ]
    plain, masked = build_frame(text), build_frame(text, mask=MASK)
    parser, masked_parser, join = FrameParser(require_mask=False), FrameParser(require_mask=True), MessageAssembler()
    found: dict[str, Callable[[], object]] = {
        "build": lambda: build_frame(text),
        "build, RSV1": lambda: build_frame(text, 1, 4),
        "build, masked": lambda: build_frame(text, mask=MASK),
        "mask alone": lambda: apply_mask(text, MASK),
        "parse": parsing(parser, plain),
        "parse, masked": parsing(masked_parser, masked),
        "parse and join 2 fragments": lambda: [join.add(frame) for frame in parser.feed(b"".join(fragments))],
        "flags and validate (text)": lambda: validate_message(*parse_flags("0x81"), text, max_size=1 << 20),
        "flags and validate (binary)": lambda: validate_message(*parse_flags("0x82"), text, max_size=1 << 20),
    }
    for name, config in (
        ("with context", DeflateConfig(threshold=0)),
        (
            "without context",
            DeflateConfig(threshold=0, server_no_context_takeover=True, client_no_context_takeover=True),
        ),
    ):
        server, _ = agreed(config)
        found[f"deflate, {name}"] = partial(server.encode, text)
        _, client = agreed(config)
        # What was made without a context may be inflated again and again with one.
        alone, compressed = server.encode_alone(text)
        if compressed:
            found[f"inflate, {name}"] = partial(client.decode, alone, 1 << 20)
    return found


def commit() -> str:
    """The commit that was measured, empty outside of a checkout."""
    git = shutil.which("git")
    return subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() if git else ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="payload sizes in bytes")
    arguments.add_argument("--time", type=float, default=0.05, help="seconds of CPU of one run")
    arguments.add_argument("--repeat", type=int, default=5, help="runs of which the best counts")
    arguments.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    options = arguments.parse_args()
    results = []
    for size in options.sizes:
        for name, work in cases(size).items():
            best, spread = measure(work, options.time, options.repeat)
            results.append({"what": name, "size": size, "us": round(best, 3), "spread": round(spread, 3)})
            if not options.json:
                busy = "  busy machine" if spread > 0.2 else ""
                print(f"{size:>8} B  {name:<28} {best:>10.3f} us  +{spread:.0%}{busy}", flush=True)
    if options.json:
        about = {
            "benchmark": "frames",
            "commit": commit(),
            "python": platform.python_version(),
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        }
        print(json.dumps({**about, "results": results}))


if __name__ == "__main__":
    main()
