"""The command line: what is wrong is told in a line, what is right reaches the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import greentx
from greentx import cli

APP = "def app(environ, start_response):\n    return []\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with a few modules; what was imported is forgotten after the test."""
    (tmp_path / "cli_app.py").write_text(APP + "class space:\n    inner = app\nnumber = 5\n")
    (tmp_path / "cli_package").mkdir()
    (tmp_path / "cli_package" / "__init__.py").write_text("")
    (tmp_path / "cli_package" / "wsgi.py").write_text(APP)
    (tmp_path / "cli_lacks.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "cli_fails.py").write_text("raise ValueError('while importing')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("cli_"):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["cli_app:app", "cli_app:space.inner", "cli_package.wsgi:app"])
def test_an_application_is_found_in_the_folder_we_are_in(folder, name):
    """Attributes may be dotted, as modules may."""
    assert cli.load_application(name)({}, None) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not of the form MODULE:APP"),
        ("cli_app", "'cli_app' is not of the form MODULE:APP"),
        ("cli_app:", "'cli_app:' is not of the form MODULE:APP"),
        (":app", "':app' is not of the form MODULE:APP"),
        ("./cli_app.py:app", "'./cli_app.py' is not the name of a module; write cli_app:app"),
        ("cli_package/wsgi.py:app", "'cli_package/wsgi.py' is not the name of a module; write cli_package.wsgi:app"),
        ("cli_package/wsgi:app", "'cli_package/wsgi' is not the name of a module; write cli_package.wsgi:app"),
        ("/srv/cli_app.py:app", "'/srv/cli_app.py' is not the name of a module; write cli_app:app"),
        ("../cli_app.py:app", "'../cli_app.py' is not the name of a module; write cli_app:app"),
        (".cli_app:app", "'.cli_app' is not the name of a module; write cli_app:app"),
        (".:app", "'.' is not the name of a module; write MODULE:app"),
        ("cli_app.py:app", "or elsewhere; write cli_app:app"),
        ("cli_nowhere:app", "there is no module 'cli_nowhere', in "),
        ("cli_package.no:app", "there is no module 'cli_package.no', in "),
        ("cli_nowhere.sub:app", "there is no module 'cli_nowhere', in "),
        ("cli_app:no", "module 'cli_app' has no 'no'"),
        ("cli_app:space.no", "module 'cli_app' has no 'space.no'"),
        ("cli_app:number", "cli_app:number is a int, which cannot be called"),
    ],
)
def test_what_names_no_application_is_told_in_a_line(folder, name, message):
    """The exit code is that of wrong arguments."""
    with pytest.raises(cli._Failure, match=re.escape(message)) as caught:
        cli.load_application(name)
    assert caught.value.code == 2


@pytest.mark.parametrize(("name", "error"), [("cli_lacks:app", ModuleNotFoundError), ("cli_fails:app", ValueError)])
def test_what_an_application_raises_is_its_own(folder, name, error):
    """A module that it lacks is not the one that was asked for."""
    with pytest.raises(error):
        cli.load_application(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["serve", "a:b"], "one of the arguments --connect --bind is required"),
        (["serve", "--bind", ":0"], "required: MODULE:APP"),
        (["serve", "a:b", "--bind", ":0", "--connect", "mongrel2://x@y"], "not allowed with argument"),
        (["serve", "a:b", "--bind", ":0", "--pool", "0"], "argument --pool: 0 is no number from 1 on"),
        (["serve", "a:b", "--bind", ":0", "--pool", "x"], "argument --pool: x is no number from 1 on"),
        (["serve", "a:b", "--bind", ":0", "--max-message-size", "-1"], "-1 is no number from 0 on"),
        (["serve", "a:b", "--bind", "mongrel2://x@y"], "argument --bind: mongrel2://x@y is no HOST:PORT"),
        (["serve", "a:b", "--bind", ":0", "--graceful-timeout", "x"], "x is no number of seconds"),
        (["serve", "a:b", "--bind", ":0", "--graceful-timeout", "-1"], "-1 is no number of seconds"),
        (["serve", "a:b", "--bind", ":0", "--graceful-timeout", "inf"], "inf is no number of seconds"),
        (["serve", "a:b", "--bind", ":0", "--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_wrong_arguments_end_with_2(capsys, arguments, said):
    """What is wrong with them is said, behind the usage."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_what_can_be_said(capsys):
    """Every option arrives; --connect may be repeated; --access-log needs no file."""
    parse = cli._parser().parse_args
    arguments = parse(["serve", "a:b", "--connect", "one", "--connect", "two", "--pool", "5", "--access-log"])
    assert (arguments.app, arguments.connect, arguments.bind) == ("a:b", ["one", "two"], None)
    assert (arguments.pool, arguments.access_log, arguments.reload) == (5, "-", False)
    assert (arguments.log_level, arguments.graceful_timeout, arguments.watch) == ("info", 30.0, False)
    assert arguments.max_message_size is None
    line = "serve a:b --bind :80 --access-log file --reload --log-level debug --graceful-timeout 0.5"
    line += " --max-message-size 0"
    arguments = parse(line.split())
    assert (arguments.bind, arguments.access_log, arguments.reload) == (":80", "file", True)
    assert arguments.max_message_size == 0
    assert " ".join(cli._worker_options(arguments)) == (
        "--log-level debug --graceful-timeout 0.5 --max-message-size 0 --access-log file"
    )
    for option, said in (("--version", f"greentx {greentx.__version__}\n"), ("--help", "serve a WSGI application")):
        with pytest.raises(SystemExit) as caught:
            cli.main([option])
        assert caught.value.code == 0
        assert said in capsys.readouterr().out


def run(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in *folder*, in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "greentx", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("serve cli_nowhere:app --bind :0", 2, "greentx: there is no module 'cli_nowhere', in "),
        ("serve ./cli_app.py:app --bind :0", 2, "greentx: './cli_app.py' is not the name of a module; write cli_app:"),
        ("serve .cli_app:app --bind :0 --reload", 2, "greentx: '.cli_app' is not the name of a module; write cli_app:"),
        ("serve cli_app:app --connect tcp://x", 2, "greentx: listener 'tcp://x' is not of the form mongrel2://"),
        ("serve cli_app:app --bind 192.0.2.1:8000", 1, "greentx: 192.0.2.1:8000 cannot be bound: "),
        ("serve cli_app:app --bind 192.0.2.1:8000 --reload", 1, "greentx: 192.0.2.1:8000 cannot be bound: "),
        ("serve cli_app:app --bind :0 --access-log /nowhere/log", 1, "greentx: [Errno 2] No such file or directory"),
        (
            "serve cli_app:app --connect mongrel2://x@127.0.0.1 --connect mongrel2://x@127.0.0.2",
            2,
            "greentx: sender 'x' is in use for ",
        ),
    ],
)
@pytest.mark.mongrel2
def test_failures_are_one_line(folder, arguments, code, line):
    """No traceback, and an exit code."""
    done = run(folder, *arguments.split(), "--log-level", "error")
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert done.stderr.startswith(line)


def test_a_failure_of_the_application_is_shown(folder):
    """Its traceback is what its author needs."""
    done = run(folder, "serve", "cli_fails:app", "--bind", ":0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: while importing"
