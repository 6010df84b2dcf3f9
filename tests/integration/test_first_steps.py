"""What a newcomer does: README's programs, word for word, in a network where the usual ports are free."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_network import Network, Program, own_network
from readme_programs import OTHERS, program_with

pytestmark = pytest.mark.mongrel2

# In front of a program: all that it says is read, and with DEBUG it says that it has opened its sockets.
LISTENED_TO = """
import logging, os, sys
os.dup2(1, 2)
os.chdir({folder!r})
sys.path.insert(0, "")
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="LOG %(message)s")
"""
OPEN = "origins is not set"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)
    with own_network() as one:
        yield one


def start(network: Network, folder: Path, program: str) -> Program:
    return network.start(f"{LISTENED_TO.format(folder=str(folder))}\n{program}\n")


def wait_for(program: Program, text: str) -> str:
    """Return its first line that has *text*."""
    while text not in (line := program.line()):
        pass
    return line


def interrupt(program: Program) -> list[str]:
    """Press Ctrl-C; return what it says besides its log. It ends as a shell expects."""
    program.child.send_signal(signal.SIGINT)
    said, _ = program.child.communicate(timeout=40)
    assert program.child.returncode == 130
    return [line for line in said.splitlines() if not line.startswith("LOG ")]


@pytest.mark.parametrize("which", ["sender    = 'rune'", "trans.serve(", "WSGIServer"])
def test_ctrl_c_ends_a_program_of_the_readme_without_a_traceback(network, tmp_path, which):
    """And without a handler of its own for it."""
    program = start(network, tmp_path, program_with(which))
    wait_for(program, OPEN)
    assert interrupt(program) == []


def test_the_first_two_programs_of_the_readme_talk_to_each_other(network, tmp_path):
    """The handler answers the stand-in, which ends."""
    handler = start(network, tmp_path, program_with("sender    = 'rune'"))
    wait_for(handler, OPEN)
    server = start(network, tmp_path, program_with("server.client()") + "\nprint('LOG said', resp.body)")
    assert wait_for(server, "LOG said").endswith(r"\r\n\r\nGET / {}'")
    assert server.end() == 0
    assert interrupt(handler) == []


@pytest.mark.parametrize("clause", ["except KeyboardInterrupt", "except SystemExit"])
def test_a_program_may_catch_ctrl_c_as_ever(network, tmp_path, clause):
    """It goes on then."""
    program = program_with("trans.serve(").replace("with Transceiver", "try:\n  with Transceiver")
    program = (
        program.replace("    trans.serve", "      trans.serve") + f"\n{clause}:\n    print('LOG caught', flush=True)"
    )
    running = start(network, tmp_path, program)
    wait_for(running, OPEN)
    running.child.send_signal(signal.SIGINT)
    wait_for(running, "LOG caught")
    assert running.end() == 0
