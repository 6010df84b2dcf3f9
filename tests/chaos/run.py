"""Scripted faults against a real mongrel2, each counting every request and every message.

``python tests/chaos/run.py [--list] [--short] [SCENARIO [NAME=VALUE ...]] ...``

Without scenarios all are run. Each prints one line: what was sent, what was right, what was lost and why, how many
answers were a stranger's, and the seconds. The exit status is 1 where something does not hold: the line says what, and
standard error has the last lines that the handlers logged. ``NAME=VALUE`` changes a figure of the scenario before it;
``--list`` shows them.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from harness import SCENARIOS, Broken, Run, Scenario

from greentx import GreentxError

#: The modules that have scenarios, one for each kind of fault.
MODULES = (
    "steady",
    "kills",
    "stops",
    "restarts",
    "exhaustion",
    "disk",
    "vanishing",
    "blocking",
    "forking",
    "interruptions",
    "bounds",
    "misconnected",
    "workers",
    "hostile",
)
#: Browsers, and what a mongrel2 and a handler need for as many.
FILES = 8192


def main() -> int:
    """Run what the command line says; return the exit status."""
    for module in MODULES:
        importlib.import_module(module)
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--list", action="store_true", help="show the scenarios and their figures, and end")
    arguments.add_argument("--short", action="store_true", help="a few seconds for each")
    arguments.add_argument("--own-mounts", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("words", nargs="*", metavar="SCENARIO [NAME=VALUE ...]")
    options = arguments.parse_args()
    if options.list:
        for one in SCENARIOS.values():
            print(one.name, *(f"{name}={value}" for name, value in one.figures.items()))
        return 0
    try:
        chosen = choose(options.words, options.short)
    except ValueError as error:
        arguments.error(str(error))
    # What mongrel2 writes about browsers that vanish is expected here.
    logging.getLogger("greentx").addHandler(logging.NullHandler())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, FILES), hard), hard))
    results = [
        run_in_namespace(one, figures) if one.own_mounts and not options.own_mounts else run(one, figures)
        for one, figures in chosen
    ]
    return 0 if all(results) else 1


def choose(words: list[str], short: bool) -> list[tuple[Scenario, dict[str, Any]]]:
    """Return the scenarios to run, each with its figures. Raises ``ValueError`` for words that mean nothing."""
    chosen: list[tuple[Scenario, dict[str, Any]]] = []
    for word in words:
        name, is_figure, text = word.partition("=")
        if not is_figure:
            if name not in SCENARIOS:
                raise ValueError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
            chosen.append((SCENARIOS[name], start_figures(SCENARIOS[name], short)))
        elif not chosen or name not in chosen[-1][1]:
            raise ValueError(f"{word!r} does not follow a scenario that has such a figure; see --list")
        else:
            figures = chosen[-1][1]
            figures[name] = type(figures[name])(text)
    return chosen or [(one, start_figures(one, short)) for one in SCENARIOS.values()]


def start_figures(one: Scenario, short: bool) -> dict[str, Any]:
    """Return what a run has where the command line says nothing else."""
    return {**one.figures, **(one.short if short else {})}


def run(one: Scenario, figures: dict[str, Any]) -> bool:
    """Run a scenario and print its line; return whether everything held."""
    began = time.monotonic()
    this = Run()
    failed = ""
    try:
        one.function(this, **figures)
    except (Broken, GreentxError, OSError) as error:
        failed = str(error) or repr(error)
    print(line(one.name, this, time.monotonic() - began, failed), flush=True)
    if failed:
        for rig in this.rigs:
            for said in rig.last_words:
                print(f"    {said}", file=sys.stderr)
    return not failed


def run_in_namespace(one: Scenario, figures: dict[str, Any]) -> bool:
    """Run a scenario in a mount namespace; ordinary users need a user namespace for one."""
    become = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = [one.name, *(f"{name}={value}" for name, value in figures.items())]
    try:
        done = subprocess.run(["unshare", *become, "--mount", sys.executable, __file__, "--own-mounts", *words])
    except FileNotFoundError:
        print(f"{one.name:<24} FAILED: there is no unshare (Debian, Ubuntu: util-linux)", flush=True)
        return False
    return done.returncode == 0


def line(name: str, this: Run, seconds: float, failed: str) -> str:
    """Return what is printed of a run."""
    tallies = [rig.tally for rig in this.rigs]
    refused: Counter[int] = sum((tally.refused for tally in tallies), Counter())
    facts: Counter[str] = sum((tally.explained() for tally in tallies), Counter())
    lost = sum(len(tally.lost) for tally in tallies)
    parts = [
        f"sent {sum(tally.sent for tally in tallies)}",
        f"right {sum(tally.right for tally in tallies)}",
        *(f"{count} answered {status}" for status, count in sorted(refused.items())),
        f"lost {lost}" + "".join(f" ({count}: {fact})" for fact, count in facts.items()),
        f"strangers' {sum(len(tally.strangers) for tally in tallies)}",
        f"{seconds:.1f} s",
        *this.notes,
        f"FAILED: {failed}" if failed else "ok",
    ]
    return f"{name:<24} {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
