"""Fuzz everything that reads bytes of a peer: ``make fuzz``.

With atheris (coverage-guided) where it is installed, else with hypothesis. Each target has an equal part of the time,
and a process of its own. A finding is written to a file, which ``--replay FILE`` runs again; the program ends with 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

from fuzz_growth import check_memory, check_time, growths, run
from fuzz_targets import CORPUS, TARGETS, Target

#: The longest input that is made up.
MAX_INPUT = 4096

# Whose branches guide the search.
_INSTRUMENTED = (
    "greentx.edge.front",
    "greentx.protocol",
    "greentx.relay",
    "greentx.handler.control",
    "greentx.handler.uploads",
    "greentx.wsgi.e",
)

# Of the time of a target, what goes to how it grows.
_GROWTH_PART = 0.3

# A single input that takes longer is a finding.
_INPUT_SECONDS = 10


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together (%(default)s)")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="only this one; may be repeated")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is made up")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for them (%(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one finding again")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # What is refused is logged, a line for each.
    logging.disable(logging.CRITICAL)
    if arguments.replay is not None:
        return replay(arguments.replay)
    engine = arguments.engine or ("atheris" if importlib.util.find_spec("atheris") else "hypothesis")
    names = arguments.target or list(TARGETS)
    if arguments.in_process:
        return fuzz(TARGETS[names[0]], engine, arguments.seconds, arguments.seed, arguments.findings)
    print(f"{len(names)} targets with {engine}, {arguments.seconds:.0f} s, seed {arguments.seed}", flush=True)
    failed = [name for name in names if not in_child(name, engine, arguments.seconds / len(names), arguments)]
    print(f"findings in {', '.join(failed)}: see {arguments.findings}" if failed else "no findings")
    return 1 if failed else 0


def in_child(name: str, engine: str, seconds: float, arguments: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own, which may hang, or be killed; return whether nothing was found."""
    command = [sys.executable, __file__, "--in-process", "--target", name, "--engine", engine]
    command += [f"--seconds={seconds}", f"--seed={arguments.seed}", f"--findings={arguments.findings}"]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        try:
            status: object = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=seconds * 1.5 + 120, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = "it hangs"
        state = "ok" if status == 0 else f"FAILED ({status})"
        print(f"{name}: {state}, {time.monotonic() - started:.0f} s", flush=True)
        output.seek(0)
        lines = output.read().splitlines()
    # Of libFuzzer's many lines the last one says how many inputs it tried.
    for line in lines[-30:] if status != 0 else [one for one in lines if "inputs " in one or one.startswith("Done")]:
        print(f"    {line[:300]}", flush=True)
    return status == 0


def fuzz(target: Target, engine: str, seconds: float, seed: int, findings: Path) -> int:
    """Fuzz one target in this process; return the exit status."""
    findings.mkdir(parents=True, exist_ok=True)
    if grow(target, seconds * _GROWTH_PART, seed, findings):
        return 1
    left = seconds * (1 - _GROWTH_PART)
    if engine == "atheris":
        return with_atheris(target, left, seed, findings)
    return with_hypothesis(target, left, seed, findings)


def grow(target: Target, seconds: float, seed: int, findings: Path) -> bool:
    """Look at how time and memory of a target grow; return whether something was found."""
    deadline = time.monotonic() + seconds
    count = 0
    for way, piece in growths(target, Random(seed), None):
        if time.monotonic() > deadline:
            break
        count += 1
        data = target.grow[way](piece, 16384)
        why = check_memory(target, data)
        if not why:
            why, longer = check_time(target, way, piece)
            data = longer if why else data
        if why:
            report(target, data, f"{way} of {piece!r}: {why}", findings)
            return True
    print(f"{count} inputs grown")
    return False


def with_hypothesis(target: Target, seconds: float, seed: int, findings: Path) -> int:
    """Let hypothesis make up inputs, with other seeds until the time is over."""
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        last = b""

        def remember(data: bytes) -> None:
            nonlocal last, count
            last = data
            count += 1
            run(target, data)

        try:
            search(target, remember, examples=500, seed=seed + count)
        except Exception:  # noqa: BLE001 - whatever it is: that is what is looked for
            # The last one that was tried is the smallest one that hypothesis found.
            report(target, last, traceback.format_exc(), findings)
            return 1
    print(f"{count} inputs made up")
    return 0


def search(target: Target, check: Callable[[bytes], None], *, examples: int, seed: int | None = None) -> None:
    """Call *check* with inputs that hypothesis makes of the seeds; raise what it raises, for the smallest input.

    Without *seed* they are the same each time.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as with_seed
    from hypothesis import strategies as st

    # An edit: where (in 1/1000 of the length), how many bytes go, and what comes in their place.
    piece = st.one_of(st.binary(max_size=8), st.sampled_from(target.seeds()))
    edits = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 8), piece), max_size=6)

    def edit(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for where, cut, new in changes:
            at = len(data) * where // 1000
            data = data[:at] + new[:200] + data[at + cut :]
        return data

    inputs: Any = st.one_of(st.builds(edit, st.sampled_from(target.seeds()), edits), st.binary(max_size=64))
    options: dict[str, Any] = {"max_examples": examples, "deadline": None, "database": None}
    options |= {"derandomize": seed is None, "suppress_health_check": list(HealthCheck)}
    options |= {"phases": (Phase.generate, Phase.shrink)}
    test = settings(**options)(given(inputs)(check))
    (test if seed is None else with_seed(seed)(test))()


def with_atheris(target: Target, seconds: float, seed: int, findings: Path) -> int:
    """Let libFuzzer look for inputs that reach other code; it ends the process where it finds something."""
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        corpus = [*target.seeds(), *(path.read_bytes() for path in sorted((CORPUS / target.name).glob("*")))]
        for number, data in enumerate(corpus):
            Path(folder, str(number)).write_bytes(data)
        # Not instrument_all(), which takes minutes for the standard library.
        for function in gc.get_objects():
            if isinstance(function, FunctionType) and (function.__module__ or "").startswith(_INSTRUMENTED):
                atheris.instrument_func(function)
        flags = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed % 2**31}", f"-max_len={MAX_INPUT}"]
        flags += [f"-timeout={_INPUT_SECONDS}", "-rss_limit_mb=1024", "-print_final_stats=1"]
        flags.append(f"-artifact_prefix={findings}/{target.name}-")
        atheris.Setup([sys.argv[0], *flags, folder], lambda data: run(target, data))
        atheris.Fuzz()
    return 0


def report(target: Target, data: bytes, why: str, findings: Path) -> None:
    """Write one finding to a file, and say how to run it again."""
    path = findings / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{why}\n{path}: {len(data)} bytes, {data[:100]!r}")
    print(f"run it again: {sys.executable} {__file__} --replay {path}")


def replay(path: Path) -> int:
    """Run one finding again; its target is the beginning of its name."""
    target = TARGETS[path.name.partition("-")[0]]
    data = path.read_bytes()
    started = time.process_time()
    run(target, data)
    print(f"{len(data)} bytes: {time.process_time() - started:.3f} s")
    why = check_memory(target, data)
    print(why or "memory is as it may be")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
