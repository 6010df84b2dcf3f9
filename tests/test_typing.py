"""README's programs, as type checkers read them: with what the package says of itself and no settings of theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_programs import OTHERS, ROOT, programs

ENVIRON = {**os.environ, "MYPYPATH": str(ROOT)}

#: What stands for a program's earlier ones.
EARLIER = """
from greentx import Request, Transceiver

trans = Transceiver("a", ("127.0.0.1", 9999), ("127.0.0.1", 9998))
req = Request.parse(b"a 1 / 2:{},0:,")
"""

#: What stands in front of those of README that go on from an earlier one.
BEFORE = "from earlier import req, trans\n\n"

#: What README says in words: all that a server may listen on, and what a timeout changes.
MORE = """
import socket

from app import application
from earlier import trans
from greentx import Connection, Request
from greentx.wsgi import WSGIServer

listening = socket.create_server(("127.0.0.1", 0))
WSGIServer(8000, application)
WSGIServer(":8000", application)
WSGIServer(listening, application)
WSGIServer("mongrel2://sender@host?pull=9999&pub=9998", application)
WSGIServer(("sender", ("127.0.0.1", 9999), "tcp://127.0.0.1:9998"), application)
WSGIServer(trans, application)
WSGIServer(("127.0.0.1", 8000), lambda environ, start_response: [b""])


def both(conn: Connection, req: Request) -> None: ...


for sid, conn, req in trans.recv():
    sender: str = sid[0]
    both(conn, req)
for sid_or_none, conn_or_none, req_or_none in trans.recv(timeout=5):
    if conn_or_none is not None and req_or_none is not None:
        both(conn_or_none, req_or_none)
"""


def goes_on(program: str) -> bool:
    """Whether a program uses the Transceiver of an earlier one."""
    return "trans" in re.findall(r"\w+", program) and "as trans" not in program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of them, each in a file of its own."""
    for name, text in {**OTHERS, "earlier.py": EARLIER, "more.py": MORE}.items():
        (tmp_path / name).write_text(text)
    for number, program in enumerate(programs()):
        text = f"{BEFORE if goes_on(program) else ''}{program}\n"
        (tmp_path / f"program_{number}.py").write_text(text, encoding="utf-8")
    return tmp_path


def check(folder: Path, *command: str | Path) -> str:
    """Run a type checker in *folder* and return what it printed; its exit code has to be 0."""
    done = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a program of this environment."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, f"{name} is missing: `make install` installs it, and pip with greentx[dev]"
    return found


def test_there_are_programs_in_the_readme() -> None:
    """Two originals, a handler, a loop, a WSGI server, its groups, a test, a relay, WebSockets, WSGI behind it."""
    assert len(programs()) == 10
    assert sum(map(goes_on, programs())) == 2


def test_with_a_timeout_a_program_has_to_ask_whether_anything_came(folder: Path) -> None:
    """Both kinds are told apart: what is fine without one is an error with one."""
    (folder / "wrong.py").write_text("from earlier import trans\nfor _, conn, req in trans.recv(5):\n    req.path\n")
    command = [tool("mypy"), "--strict", "--follow-imports=silent", "--python-executable", sys.executable, "wrong.py"]
    done = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=50)
    assert 'wrong.py:3: error: Item "None" of "Request | None" has no attribute "path"' in done.stdout


def test_mypy_accepts_the_programs_of_the_readme(folder: Path) -> None:
    """Strict, and without a cast or an assertion that the user would have to write."""
    # gevent itself has no types: whoever imports it says so to mypy, or installs types-gevent.
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-gevent.*]\nignore_missing_imports = True\n")
    said = check(
        folder, tool("mypy"), "--strict", "--follow-imports=silent", "--python-executable", sys.executable, "."
    )
    assert said == f"Success: no issues found in {len(list(folder.glob('*.py')))} source files\n"


def test_pyright_accepts_the_programs_of_the_readme(folder: Path) -> None:
    """In its standard mode; basedpyright is pyright with what it runs on, all of it from PyPI."""
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "include": ["*.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    said = check(folder, tool("basedpyright"), "--pythonpath", sys.executable)
    assert said.splitlines()[-1] == "0 errors, 0 warnings, 0 notes", said
