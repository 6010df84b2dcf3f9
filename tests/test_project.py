"""What holds for the project as a whole: its layers, its package, its two commands."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MODULES = sorted((ROOT / "greentx").rglob("*.py"))
#: Modules of ``greentx/edge/front`` that read what browsers send, and answer it.
READS_REQUESTS = ("answers", "chunks", "events", "heads", "limits", "requests")
#: What is written for readers, by its path.
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        "README.rst",
        "CONTRIBUTING.rst",
        "CHANGES.rst",
        "docs/migration.rst",
        "docs/redis.rst",
        "docs/scaling.rst",
        "docs/security.rst",
        "benchmarks/README.rst",
    )
}


def name_of(path: Path) -> str:
    """Return the dotted name of the module at *path*."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Return the full names of all that a module imports, wherever in it."""
    found: set[str] = set()
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            found.update(f"{base}.{alias.name}" for alias in node.names)
            found.add(base)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_and_exports(path):
    """A docstring, postponed annotations, and an __all__ (whose order ruff looks after)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert "__future__.annotations" in imports(path)
    targets = [ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)]
    assert targets.count("__all__") == 1


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if "protocol" in path.parts or path.name in ("errors.py", "version.py")]
    + [ROOT / "greentx" / "edge" / "front" / f"{name}.py" for name in READS_REQUESTS],
    ids=name_of,
)
def test_what_is_decided_from_bytes_does_no_io(path):
    """``protocol/``, what it imports, and what reads requests import neither sockets, greenlets nor clocks."""
    found = {name.partition(".")[0] for name in imports(path)}
    assert not {"gevent", "greenlet", "select", "socket", "subprocess", "threading", "time", "zmq"} & found


def test_only_the_transport_knows_zeromq():
    """Another transport, or a fake one, replaces one place."""
    users = {name_of(path) for path in MODULES if any(name.split(".")[0] == "zmq" for name in imports(path))}
    assert all(user.startswith("greentx.transport") for user in users), users


@pytest.mark.parametrize(("side", "other"), [("handler", "standin"), ("standin", "handler")])
def test_the_two_sides_meet_in_messages_only(side, other):
    """The handler side never imports the stand-in for the server, nor the other way round."""
    modules = [path for path in MODULES if name_of(path).startswith(f"greentx.{side}")]
    assert modules
    for path in modules:
        assert not [name for name in imports(path) if name.startswith(f"greentx.{other}")], name_of(path)


def test_only_the_command_line_patches():
    """Nothing else calls gevent's monkey.patch_...: whether a program is patched is its own decision."""
    users = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].startswith("patch_")
    }
    assert all(user.startswith("greentx.cli") for user in users), users


@pytest.mark.parametrize("names", ["greentx, greentx.edge, greentx.wsgi.websocket, greentx.relay", "greentx.gunicorn"])
def test_an_import_opens_and_patches_nothing(names):
    """No descriptor, no thread, no handler of a logger, no patched module."""
    script = (
        "import os, logging, socket\n"
        "def things():\n"
        "    counts = [os.listdir(f'/proc/self/{name}') for name in ('fd', 'task')]\n"
        "    return counts, socket.socket, logging.root.handlers[:]\n"
        "before = things()\n"
        f"import {names}\n"
        "assert before == things(), (before, things())\n"
        "assert not logging.getLogger('greentx').handlers\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_can_be_read_without_an_import():
    """setuptools reads a plain literal off the syntax tree; else it would import what needs requirements."""
    import greentx

    line = f'__version__ = "{greentx.__version__}"'
    assert line in (ROOT / "greentx" / "version.py").read_text(encoding="utf-8").splitlines()
    assert 'version = { attr = "greentx.version.__version__" }' in PYPROJECT


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_files_that_exist(page):
    """Files move, and the page would soon be wrong."""
    names = set(re.findall(r"\b(?:benchmarks|docs|examples|greentx|tests)/[\w/]+\.[a-z]+", PAGES[page]))
    assert sorted(name for name in names if not (ROOT / name).is_file()) == []


def test_the_readme_shows_an_example_that_is_run():
    """Its handler is examples/echo.py, line for line."""
    code = (ROOT / "examples" / "echo.py").read_text(encoding="utf-8").partition("\n\n")[2]
    assert textwrap.indent(code, "    ") in PAGES["README.rst"]


def test_each_question_of_a_newcomer_is_answered_by_one_file_of_its_own():
    """Two questions with one answer are one question, and a folder is not an answer."""
    table = PAGES["CONTRIBUTING.rst"].split("\nWhere is it decided ...")[1].split("\n===")[1]
    rows = [re.split(r"  +", line) for line in table.splitlines() if line.endswith("``")]
    answers = [answer for _question, answer in rows]
    assert len(set(answers)) == len(answers) >= 10
    assert all(re.fullmatch(r"``greentx/[\w/]+\.py``", answer) for answer in answers)


def make(target: str, tools: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one target on a machine that has the few programs in *tools* only."""
    for name in ("sh", "id", "env", "make"):
        program = shutil.which(name)
        assert program is not None, name
        (tools / name).symlink_to(program)
    return subprocess.run(
        [tools / "make", "--no-print-directory", "--no-builtin-rules", target],
        cwd=ROOT,
        env={"PATH": str(tools), **environ},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_without_mongrel2_and_apt_one_line_says_what_to_install(tmp_path):
    """Where the program can be neither found nor installed, make stops and names the package."""
    done = make("mongrel2", tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0
    assert (done.stdout, len(said)) == ("", 1)
    assert "apt-get install mongrel2-core" in said[0]


def test_without_wrk_one_line_says_so_and_make_goes_on(tmp_path):
    """A benchmark and its tests need it, and nothing else does."""
    done = make("wrk", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    assert "wrk is missing (what needs it is left out)" in done.stderr
    assert "apt-get install wrk" in done.stderr


@pytest.mark.parametrize("target", ["mongrel2", "mongrel2-if-possible"])
def test_going_without_mongrel2_can_be_said(tmp_path, target):
    """GREENTX_WITHOUT_MONGREL2=1 lets make go on, in CI too, and nothing is said of it."""
    done = make(target, tmp_path, GREENTX_WITHOUT_MONGREL2="1", CI="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("target", ["mongrel2-if-possible", "chromium", "redis"])
def test_tests_are_run_without_what_is_missing_but_not_in_ci(tmp_path, target):
    """One line says what is missing, as pytest's last lines do of the tests."""
    done = make(target, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    assert "is missing (what needs it is left out): install it" in done.stderr
    for name in os.listdir(tmp_path):
        os.unlink(tmp_path / name)
    assert make(target, tmp_path, CI="true").returncode != 0


def test_apt_installs_mongrel2_where_it_may(tmp_path):
    """With apt-get and the right to use it, the package is installed, after an update where its list is stale."""
    calls = tmp_path / "calls"
    script = (
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        # The first attempt finds no list of packages.
        f'case "$*" in *install*) grep -q update {calls} || exit 100; '
        f'printf "#!/bin/sh\\n" > {tmp_path}/mongrel2; {shutil.which("chmod")} +x {tmp_path}/mongrel2;; esac\n'
    )
    (tmp_path / "apt-get").write_text(script)
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "grep").symlink_to(str(shutil.which("grep")))
    (tmp_path / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    (tmp_path / "true").symlink_to(str(shutil.which("true")))
    done = make("mongrel2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0 if "update" in line else -1] for line in calls.read_text().splitlines()] == [
        "mongrel2-core",
        "update",
        "mongrel2-core",
    ]


def test_tests_and_benchmarks_are_not_shipped():
    """The package alone is installed, with the mark that it is typed; tests/test_install.py looks into the wheel."""
    assert 'include = ["greentx", "greentx.*"]' in PYPROJECT
    assert os.path.getsize(ROOT / "greentx" / "py.typed") == 0
