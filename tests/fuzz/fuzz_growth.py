"""Time and memory of the targets as their input grows: never the square of its size, never many times its size.

Each target has ways to make a long input of a repeated piece. Twice the input may take 2.5 times the CPU time, at sizes
at which that can be measured, and no more memory than the target's factor says.
"""

from __future__ import annotations

import contextlib
import gc
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from random import Random

from fuzz_targets import ALLOWED, Target

__all__ = ["PIECES", "check_memory", "check_time", "growths"]

#: What is repeated: what the grammars that are read have a meaning for.
PIECES = [b"a", b"1", b" ", b"\t", b",", b";", b'"', b"\\", b":", b"=", b"[", b"{", b"]", b"}", b"%", b"&a=b", b"%41"]
PIECES += [
    b"\xff",
    b"\xc3\xa9",
    b"\n",
    b"\r\n",
    b'a"b',
    b"a;b=c,",
    b"0:,",
    b"0:]",
    b"1:a,",
    b"0:~",
    b"\\u00e9",
    b"a: b\r\n",
]

#: From each of these to four times as much.
SIZES = (4096, 16384, 65536)

#: Four times the input, at the most so many times the time: 2.5 for each doubling. The square would be 16 times.
RATIO = 2.5**2

# Below this nothing is measured: a clock's step, another process.
_SECONDS = 0.002


def growths(target: Target, random: Random, count: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield ways to grow and pieces: all of them, or *count* chosen at random, with pieces of the seeds among them."""
    seeds = target.seeds()
    pairs = [(way, piece) for way in target.grow for piece in PIECES]
    for _ in range(len(pairs) // 2):
        seed = random.choice(seeds)
        at = random.randrange(len(seed) + 1)
        pairs.append((random.choice(list(target.grow)), seed[at : at + random.randint(1, 40)]))
    random.shuffle(pairs)
    yield from pairs if count is None else pairs[:count]


def run(target: Target, data: bytes) -> None:
    with contextlib.suppress(*ALLOWED):
        target.run(data)


def check_time(target: Target, way: str, piece: bytes, sizes: Sequence[int] = SIZES) -> tuple[str, bytes]:
    """Return what is wrong with how the time grows, ``""`` if nothing is, and the input that shows it."""
    grow = target.grow[way]
    for size in sizes:
        data, longer = grow(piece, size), grow(piece, 4 * size)
        once = seconds(target, data, 2)
        if once < _SECONDS:
            continue
        # Not every way is as long as it was asked to be.
        allowed = RATIO * max(1.0, len(longer) / max(1, len(data)) / 4)
        # A busy machine disturbs some runs, the square all of them.
        for repeat in (1, 2, 4):
            again = seconds(target, longer, repeat)
            if again <= allowed * once:
                break
            once = seconds(target, data, 2 * repeat)
        else:
            return f"{len(data)} bytes take {once:.4f} s, {len(longer)} bytes {again:.4f} s", longer
    return "", b""


def seconds(target: Target, data: bytes, repeat: int = 1) -> float:
    """The least CPU time of some runs."""
    least = float("inf")
    gc.disable()
    try:
        for _ in range(repeat):
            started = time.process_time()
            run(target, data)
            least = min(least, time.process_time() - started)
    finally:
        gc.enable()
    return least


def check_memory(target: Target, data: bytes) -> str:
    """Return what is wrong with the memory that one input takes, ``""`` if nothing is.

    It is let go of at the end, without a look for cycles: what waits for that is held for as long as nothing looks.
    """
    run(target, data)  # what is kept of it on purpose, in caches, is in memory then
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        run(target, data)
        _, peak = tracemalloc.get_traced_memory()
        cycles = gc.collect()
    finally:
        tracemalloc.stop()
        gc.enable()
    limit = target.factor * len(data) + target.extra
    if peak > limit:
        return f"{len(data)} bytes take {peak} bytes of memory, limit {limit:.0f}"
    return f"{len(data)} bytes leave {cycles} objects in reference cycles" if cycles else ""
