"""Programs that some tests need and a machine may lack: then those are skipped, and the last lines say how many.

Not in CI, where it is an error: nothing is skipped there (``CI=true``, which ``.ci/run`` sets). A variable says for one
program that it is meant, there too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NoReturn

import pytest

__all__ = ["go_without", "is_a_must", "skipped", "summary"]

_REASON = "for want of "


def is_a_must(variable: str) -> bool:
    """Whether a program has to be there; *variable* is set to 1 to go without it."""
    return os.environ.get("CI", "").lower() in ("1", "true") and os.environ.get(variable) != "1"


def go_without(program: str, packages: str, variable: str) -> NoReturn:
    """Skip the test, as *program* is missing; in CI, fail it.

    Args:
        packages: What it is in, for Debian.
        variable: It is set to 1 to go without, in CI too.
    """
    if is_a_must(variable):
        pytest.fail(
            f"{program} is missing: install it (Debian, Ubuntu: apt-get install {packages}), "
            f"or set {variable}=1 to go without",
            pytrace=False,
        )
    pytest.skip(skipped(program))


def skipped(program: str) -> str:
    """Return why a test is skipped that needs *program*."""
    return f"{_REASON}{program}"


def summary(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Return lines about what was skipped for want of a program: how many tests, and in which files."""
    found: dict[str, Counter[str]] = {}
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        _, wanted, program = reason.partition(_REASON)
        if wanted:
            found.setdefault(program, Counter())[report.nodeid.partition("::")[0].rpartition("/")[2]] += 1
    for program, files in found.items():
        count = sum(files.values())
        yield f"not run {_REASON}{program}: {count} test{'s' if count > 1 else ''} of {len(files)} files:"
        yield from _wrapped(f"{name} {number}" for name, number in sorted(files.items()))


def _wrapped(words: Iterable[str]) -> Iterator[str]:
    line = " "
    for word in words:
        if len(line) + len(word) > 110:
            yield line + ","
            line = " "
        line += f"{',' if line != ' ' else ''} {word}"
    yield line
