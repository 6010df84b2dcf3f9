"""The command line: what is wrong is told in a line, what is right reaches the server."""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import greentx
from greentx import cli
from greentx.transport.keys import load_keys, public_key

APP = "def app(environ, start_response):\n    return []\n"
FACTORY = """
def create(*args, **options):
    def application(environ, start_response):
        return []
    application.made_with = args, options
    return application
def create_app():
    return create()
async def asgi(scope, receive, send):
    pass
class space:
    create = create
def nothing():
    return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with a few modules; what was imported is forgotten after the test."""
    (tmp_path / "cli_app.py").write_text(APP + "class space:\n    inner = app\nnumber = 5\n")
    (tmp_path / "cli_package").mkdir()
    (tmp_path / "cli_package" / "__init__.py").write_text("")
    (tmp_path / "cli_package" / "wsgi.py").write_text(APP)
    (tmp_path / "cli_both.py").write_text("app = 5\n" + APP.replace("app", "application"))
    (tmp_path / "cli_factory.py").write_text(FACTORY)
    (tmp_path / "cli_lacks.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "cli_fails.py").write_text("raise ValueError('while importing')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("cli_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    [
        *("cli_app:app", "cli_app:space.inner", "cli_package.wsgi:app"),
        *("cli_app", "cli_both", "cli_package.wsgi"),
        *("cli_factory:create()", "cli_factory:create('x', [1], debug=True)", "cli_factory:space.create( )"),
    ],
)
def test_an_application_is_found_in_the_folder_we_are_in(folder, name):
    """Attributes may be dotted, as modules may; ``application`` and ``app`` need no name; a call makes one."""
    assert cli.load_application(name)({}, None) == []


def test_a_factory_gets_the_arguments_that_are_written(folder):
    """Literals, as gunicorn has it."""
    application: Any = cli.load_application("cli_factory:create('x', [1], debug=True)")
    assert application.made_with == (("x", [1]), {"debug": True})


def test_the_folder_of_the_module_may_be_another_one(folder, monkeypatch):
    """--app-dir; what is not there is told."""
    monkeypatch.chdir("/")
    assert cli.load_application("cli_app", str(folder))({}, None) == []
    with pytest.raises(cli.Failure, match="there is no folder /nowhere/at/all"):
        cli.load_application("cli_app", "/nowhere/at/all")


def test_the_folder_of_the_module_comes_first_wherever_it_was_in_the_path(folder, monkeypatch):
    """Once, as --app-dir says; PYTHONPATH may name it behind others."""
    monkeypatch.setattr(sys, "path", ["/elsewhere", *sys.path, str(folder)])
    cli.load_application("cli_app", str(folder))
    assert sys.path[:2] == [str(folder), "/elsewhere"]
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not of the form MODULE:APP"),
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
        ("cli_app:number", "cli_app:number is an int, which cannot be called"),
        ("cli_app.py", "or elsewhere; write cli_app"),
        ("cli_factory", "'cli_factory' has neither application nor app; write cli_factory:create_app()"),
        ("cli_package", "'cli_package' has neither application nor app; write cli_package:NAME"),
        ("cli_factory:create_app", "too many positional arguments; if it makes the application, write cli_factory:cr"),
        ("cli_factory:asgi", "missing a required argument: 'send'; it looks like an ASGI application"),
        ("cli_factory:nothing()", "cli_factory:nothing() is a NoneType, which cannot be called"),
        ("cli_factory:no()", "module 'cli_factory' has no 'no'"),
        ("cli_app:number()", "cli_app:number(): number is an int, which cannot be called"),
        ("cli_factory:create(x)", "is not of the form MODULE:APP, nor MODULE:create_app('text', number=1)"),
        ("cli_factory:create(**{})", "is not of the form MODULE:APP, nor MODULE:create_app('text', number=1)"),
        ("cli_factory:create()()", "is not of the form MODULE:APP, nor MODULE:create_app('text', number=1)"),
        ("cli_factory:create(", "is not of the form MODULE:APP, nor MODULE:create_app('text', number=1)"),
    ],
)
def test_what_names_no_application_is_told_in_a_line(folder, name, message):
    """The exit code is that of wrong arguments."""
    with pytest.raises(cli.Failure, match=re.escape(message)) as caught:
        cli.load_application(name)
    assert caught.value.code == 2


@pytest.mark.parametrize(("name", "error"), [("cli_lacks:app", ModuleNotFoundError), ("cli_fails:app", ValueError)])
def test_what_an_application_raises_is_its_own(folder, name, error):
    """A module that it lacks is not the one that was asked for."""
    with pytest.raises(error):
        cli.load_application(name)


def read(*words: str, command: str = "serve", **environ: str) -> argparse.Namespace:
    """Return what a command makes of its words and of the environment."""
    arguments = cli.build_parser().parse_args([command, *words])
    arguments.fill_in(arguments, environ)
    return arguments


#: What is wrong, whoever says it: an option, its value, and what is said of it.
WRONG = [
    ("pool", "0", "0 is not a whole number, or too small: the minimum is 1"),
    ("pool", "x", "x is not a whole number, or too small: the minimum is 1"),
    ("max_message_size", "-1", "-1 is not a whole number, or too small: the minimum is 0"),
    ("max_queue_bytes", "0", "0 is not a whole number, or too small: the minimum is 1"),
    ("graceful_timeout", "x", "x is not a number of seconds"),
    ("graceful_timeout", "-1", "-1 is not a number of seconds"),
    ("graceful_timeout", "inf", "inf is not a number of seconds"),
    ("ping_timeout", "often", "often is not a number of seconds"),
    ("origins", "a.example", "origin 'a.example' is not what a browser sends"),
    ("bind", "mongrel2://x@y", "mongrel2://x@y is not HOST:PORT; URLs are for --connect"),
    ("bind", "http://localhost:8000", "http://localhost:8000 is not HOST:PORT; write localhost:8000"),
    ("bind", "localhost", "localhost has no port; write localhost:8000"),
    ("bind", "[::1]", "[::1] has no port; write [::1]:8000"),
    ("bind", "localhost:http", "localhost:http is not HOST:PORT: 'http' is not a port"),
    ("bind", "localhost:70000", "localhost:70000 is not HOST:PORT: a port is 0 to 65535"),
    ("bind", "::1:8000", "::1:8000 can be read in two ways; write [::1]:8000"),
    ("bind", "unix:", "'unix:' has no path: write unix:/path/of/socket"),
    ("bind", "/run/app.sock", "/run/app.sock is not HOST:PORT; write unix:/run/app.sock for a Unix socket"),
    ("max_pending_bytes", "0", "0 is not a whole number, or too small: the minimum is 1"),
    ("connect", "tcp://x", "listener 'tcp://x' is not of the form mongrel2://"),
    ("set", "limits.content_length", "limits.content_length is not NAME=VALUE, such as limits.content_length=1000000"),
    ("set", "Limits=1", "Limits=1 is not NAME=VALUE"),
    ("workers", "0", "0 is not a whole number, or too small: the minimum is 1"),
    ("worker_timeout", "0", "0 is not a whole number, or too small: the minimum is 1"),
    ("max_requests", "-1", "-1 is not a whole number, or too small: the minimum is 0"),
    ("retry", "GET,put", "put is not a method, such as GET or PUT"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["serve", "a:b", "--bind", ":0", "--connect", "mongrel2://x@y"], "--bind and --connect exclude each other"),
        (["serve", "a:b", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["serve", "a:b", "--lost"], "unrecognized arguments: --lost"),
        *((["serve", "a:b", f"--{name.replace('_', '-')}={value}"], said) for name, value, said in WRONG),
    ],
)
def test_wrong_arguments_end_with_2(capsys, arguments, said):
    """What is wrong is said in one line, with the option."""
    with pytest.raises(SystemExit) as caught:
        read(*arguments[1:]) if arguments else cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    option = arguments[2].partition("=")[0] if len(arguments) == 3 else ""
    assert option in error


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *WRONG,
        ("log_level", "loud", "loud is not one of debug, info, warning, error"),
        ("reload", "perhaps", "perhaps is not 1 or 0"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["environment", "file"])
def test_a_wrong_value_of_a_variable_is_told_with_its_name(tmp_path, name, value, said, in_file):
    """And, where it stands in a file, with that."""
    variable = f"GREENTX_{name.upper()}"
    (tmp_path / "env").write_text(f"{variable}={value}\n")
    if in_file:
        words, environ, where = ["--env-file", str(tmp_path / "env")], {}, f"{variable} in {tmp_path}/env: "
    else:
        words, environ, where = [], {variable: value}, f"{variable}: "
    with pytest.raises(cli.Failure) as caught:
        read("a:b", *words, **environ)
    assert str(caught.value).startswith(where)
    assert said in str(caught.value)
    assert caught.value.code == 2


def test_what_can_be_said():
    """Every option arrives; --connect may be repeated; --access-log needs no file."""
    one, two = "mongrel2://one@localhost", "mongrel2://two@localhost"
    arguments = read("a:b", "--connect", one, "--connect", two, "--pool", "5", "--access-log")
    assert (arguments.app, arguments.connect, arguments.bind) == ("a:b", [one, two], None)
    assert (arguments.pool, arguments.access_log, arguments.reload) == (5, "-", False)
    assert (arguments.log_level, arguments.graceful_timeout, arguments.front_end) == ("info", 30.0, "auto")
    assert arguments.max_message_size is None
    line = "a:b --bind :80 --access-log file --reload --log-level debug --graceful-timeout 0.5"
    line += " --max-message-size 0 --origins same,none --set limits.min_ping=5 --set upload.temp_store=/x"
    arguments = read(*line.split())
    assert (arguments.bind, arguments.access_log, arguments.reload) == (":80", "file", True)
    assert (arguments.max_message_size, arguments.origins) == (0, "same,none")
    assert arguments.set == [("limits.min_ping", 5), ("upload.temp_store", "/x")]


@pytest.mark.parametrize("bind", ["8440", ":8440", "localhost:8440", "127.0.0.1:0", "[::1]:8440", "*:80"])
def test_an_address_may_be_written_as_others_write_it(bind):
    """As it was written, to the server."""
    assert read("a:b", "--bind", bind).bind == bind


def test_each_option_has_a_variable():
    """With the same meaning, a list with spaces; a flag may be switched off again on the command line."""
    said = {
        "app": ("shop:create()", "shop:create()"),
        "app_dir": ("/srv", "/srv"),
        "env_file": (os.devnull, os.devnull),
        "reload": ("1", True),
        "pool": ("5", 5),
        "graceful_timeout": ("1.5", 1.5),
        "access_log": ("-", "-"),
        "log_level": ("debug", "debug"),
        "bind": ("[::1]:8440", "[::1]:8440"),
        "certfile": ("cert", "cert"),
        "keyfile": ("key", "key"),
        "set": ("a=1 b.c=x", [("a", 1), ("b.c", "x")]),
        "shared": ("on", True),
        "upload_store": ("/x/XXXXXX", "/x/XXXXXX"),
        "origins": ("same,none", "same,none"),
        "forwarded_allow_ips": ("10.0.0.0/8,::1", "10.0.0.0/8,::1"),
        "max_message_size": ("0", 0),
        "max_queue_bytes": ("1000", 1000),
        "max_pending_bytes": ("1000", 1000),
        "ping_timeout": ("20", 20.0),
        "control": (":0", ":0"),
        "control_allow": ("10.0.0.0/8 ::1", ["10.0.0.0/8", "::1"]),
        "curve_secret": ("secret", "secret"),
        "curve_allow": ("one two", ["one", "two"]),
        "workers": ("3", 3),
        "max_requests": ("1000", 1000),
        "max_requests_jitter": ("50", 50),
        "worker_timeout": ("10", 10),
        "preload": ("yes", True),
        "retry": ("GET,PUT", ["GET", "PUT"]),
        "pid": ("/run/pid", "/run/pid"),
        "front_end": ("edge", "edge"),
    }
    environ = {f"GREENTX_{name.upper()}": text for name, (text, _) in said.items()}
    arguments = vars(read(**environ))
    assert {name: arguments[name] for name in said} == {name: value for name, (_, value) in said.items()}
    url = "mongrel2://a@b"
    assert read(GREENTX_CONNECT=f"{url} {url}").connect == [url, url]
    # What is left out here has no variable of its own: nobody but --reload says it.
    assert set(arguments) - set(said) == {"connect", "entry", "function", "fill_in"}
    assert read(GREENTX_ENTRY=url).entry == []
    assert not read("--no-reload", **environ).reload


def test_the_relay_and_its_nodes_have_variables_as_well():
    """Each option but those for the process that starts a relay."""
    limits = {"max_queue_bytes": ("1000", 1000), "max_pending_bytes": ("1000", 1000), "upload_store": ("/x", "/x")}
    common = {
        **limits,
        "env_file": (os.devnull, os.devnull),
        "graceful_timeout": ("1.5", 1.5),
        "log_level": ("debug", "debug"),
        "control": (":0", ":0"),
        "control_allow": ("10.0.0.0/8 ::1", ["10.0.0.0/8", "::1"]),
        "curve_secret": ("secret", "secret"),
        "curve_allow": ("one two", ["one", "two"]),
    }
    relay = {
        **common,
        "listen": ("*:9996", "*:9996"),
        "push": ("*:9995", "*:9995"),
        "pub": ("ipc:///run/pub", "ipc:///run/pub"),
        "retry": ("GET,PUT", ["GET", "PUT"]),
        "send_timeout": ("5", 5.0),
        "bind": (":80", ":80"),
        "front_end": ("edge", "edge"),
        "certfile": ("cert", "cert"),
        "keyfile": ("key", "key"),
        "set": ("a=1", [("a", 1)]),
        "origins": ("same", "same"),
        "max_message_size": ("0", 0),
        "ping_timeout": ("20", 20.0),
    }
    node = {
        **common,
        "app": ("a:b", "a:b"),
        "app_dir": ("/srv", "/srv"),
        "pool": ("5", 5),
        "access_log": ("-", "-"),
        "forwarded_allow_ips": ("10.0.0.0/8", "10.0.0.0/8"),
        "relay": ("relay.example:9996", "relay.example:9996"),
        "name": ("one", "one"),
        "curve_relay": ("api.key", "api.key"),
    }
    hidden = {"connect", "until_eof", "notify_fd", "private_folder", "uid", "gid", "serves"}
    for command, said, others in (("relay", relay, hidden), ("node", node, set())):
        environ = {f"GREENTX_{name.upper()}": text for name, (text, _) in said.items()}
        arguments = vars(read(command=command, **environ))
        assert {name: arguments[name] for name in said} == {name: value for name, (_, value) in said.items()}
        assert set(arguments) - set(said) - {"function", "fill_in"} == others


@pytest.mark.parametrize(
    ("command", "option", "value", "said"),
    [
        ("relay", "listen", "9996", "write"),
        ("relay", "listen", "inproc://x", "use ipc:// or tcp://"),
        ("relay", "push", "host:x", "'x'"),
        ("relay", "send-timeout", "long", "long is not a number of seconds"),
        ("node", "relay", "*:9996", "name the host to connect to"),
        ("node", "relay", "host", "address 'host' has no port"),
        ("node", "relay", "host:0", "port 0"),
    ],
)
def test_an_address_of_a_relay_that_cannot_be_is_told(capsys, command, option, value, said):
    """With the option, in one line."""
    with pytest.raises(SystemExit) as caught:
        read(f"--{option}", value, command=command)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error and f"--{option}" in error
    assert error.count("\n") == 1


def test_the_command_line_counts_more_than_the_environment_and_that_more_than_the_file(tmp_path):
    """And each more than the default; what is empty is not set."""
    file = tmp_path / "env"
    file.write_text(
        "# what the application reads\nDATABASE = 'sqlite:///shop db'\nexport SECRET=\"a b\" # not told to anybody\n\n"
        "GREENTX_POOL=1\nGREENTX_LOG_LEVEL=debug\nGREENTX_GRACEFUL_TIMEOUT=7\nURL=x?a=b#c\nEMPTY=\n"
    )
    environ = {"GREENTX_LOG_LEVEL": "error", "GREENTX_POOL": "2", "GREENTX_ORIGINS": "", "SECRET": "mine"}
    arguments = cli.build_parser().parse_args(["serve", "a:b", "--env-file", str(file), "--pool", "3"])
    for_application = arguments.fill_in(arguments, environ)
    assert (arguments.pool, arguments.log_level, arguments.graceful_timeout) == (3, "error", 7.0)
    assert (arguments.origins, arguments.max_queue_bytes) == (None, None)
    # What the environment has is not replaced.
    assert {name: for_application[name] for name in ("DATABASE", "URL", "EMPTY")} == {
        "DATABASE": "sqlite:///shop db",
        "URL": "x?a=b#c",
        "EMPTY": "",
    }
    assert "SECRET" not in for_application


def test_where_requests_come_from_is_said_by_the_first_who_says_anything(tmp_path):
    """--bind on the command line is not contradicted by GREENTX_CONNECT; two of one place are."""
    url = "mongrel2://a@b"
    (tmp_path / "env").write_text(f"GREENTX_BIND=:1\nGREENTX_CONNECT={url}\n")
    file = ["--env-file", str(tmp_path / "env")]
    arguments = read("a:b", "--bind", ":80", *file, GREENTX_CONNECT=url)
    assert (arguments.bind, arguments.connect) == (":80", [])
    arguments = read("a:b", *file, GREENTX_CONNECT=url)
    assert (arguments.bind, arguments.connect) == (None, [url])
    with pytest.raises(cli.Failure, match=f"GREENTX_BIND and GREENTX_CONNECT in {tmp_path}/env exclude each other"):
        read("a:b", *file)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        *(("A=", ""), ("A= # nothing", ""), ("A=\t#", ""), ("A = # nothing", ""), ("A='' # x", "")),
        *(("A=#b", "#b"), ("A=x#y", "x#y"), ("A=x # y", "x"), ("A= x y ", "x y"), ('A="# q" # z', "# q")),
    ],
)
def test_a_comment_in_a_file_of_variables_is_not_a_value(tmp_path, line, value):
    """It begins behind a space, as in a shell."""
    (tmp_path / "env").write_text(f"{line}\nB=1\n")
    assert variables_of(tmp_path / "env") == {"A": value, "B": "1"}


def test_a_file_of_variables_may_be_written_by_an_editor_of_windows(tmp_path):
    """Which puts a mark in front of UTF-8, and CR LF behind each line."""
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbfA=1\r\nB=\xc3\xa9\r\n")
    assert variables_of(tmp_path / "env") == {"A": "1", "B": "\u00e9"}


def variables_of(file: Path) -> dict[str, str]:
    """Return what an application finds that is started with --env-file."""
    arguments = cli.build_parser().parse_args(["serve", "a:b", "--env-file", str(file)])
    return dict(arguments.fill_in(arguments, {}))


@pytest.mark.parametrize(("line", "said"), [("just words", "just words"), ('A="x" y', "x"), ("1A=5", "1A=5")])
def test_a_line_of_a_file_that_says_nothing_is_named(tmp_path, line, said):
    """By its number."""
    (tmp_path / "env").write_text(f"A=1\n\n{line}\n")
    with pytest.raises(cli.Failure, match=rf"{tmp_path}/env, line 3: .*{said}.* is not NAME=value"):
        read("a:b", "--env-file", str(tmp_path / "env"))
    with pytest.raises(cli.Failure, match="--env-file /nowhere/env: No such file or directory"):
        read("a:b", "--env-file", "/nowhere/env")


def test_help_and_version(capsys):
    """On stdout, with 0."""
    for words, said in (
        (["--version"], f"greentx {greentx.__version__}\n"),
        (["--help"], "serve a WSGI application"),
        (["serve", "--help"], "A variable GREENTX_... stands for each option"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        assert said in " ".join(capsys.readouterr().out.replace(greentx.__version__, greentx.__version__).split(" "))


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
        ("serve cli_app:app --connect tcp://x", 2, "greentx serve: argument --connect: listener 'tcp://x' is not"),
        (
            "serve cli_app:app --bind nohost.invalid:80",
            1,
            "greentx: 'nohost.invalid' is not an address to listen on: N",
        ),
        (
            "serve cli_app:app --bind :0 --set limits.content_length=x",
            2,
            "greentx: setting limits.content_length is 'x'",
        ),
        (
            "serve cli_app:app --bind :0 --set limits.contentlength=5",
            2,
            "greentx: setting 'limits.contentlength' is not one of Mongrel2's; did you mean 'limits.content_length'?",
        ),
        (
            "serve cli_app:app --bind :0 --certfile /nowhere/cert",
            1,
            "greentx: /nowhere/cert: No such file or directory",
        ),
        (
            "serve cli_app:app --connect mongrel2://x@y --set a=1",
            2,
            "greentx: --set: for a front end of our own (--bind)",
        ),
        (
            "serve cli_app:app --connect mongrel2://x@127.0.0.1 --upload-store here",
            2,
            "greentx: upload_store 'here' is not an absolute path that ends in XXXXXX",
        ),
        ("serve cli_app:app --bind :0 --keyfile x", 2, "greentx: --keyfile needs --certfile"),
        ("serve cli_app:app --shared", 2, "greentx: --shared: for an entry of another Mongrel2 (--connect)"),
        (
            "serve cli_app:app --reload --workers 2",
            2,
            "greentx: --reload and --workers exclude each other: send SIGHUP to replace the workers",
        ),
        (
            "serve cli_app:app --workers 2 --connect mongrel2://x@y --shared",
            2,
            "greentx: --shared and --workers exclude each other",
        ),
        ("serve cli_app:app --max-requests 5", 2, "greentx: --max-requests needs --workers"),
        ("serve cli_app:app --preload", 2, "greentx: --preload needs --workers"),
        ("node --relay 127.0.0.1:9996", 2, "greentx: which application? Write greentx node MODULE:APP"),
        ("node cli_app:app", 2, "greentx: which relay? Write --relay HOST:PORT, or set GREENTX_RELAY"),
        ("node cli_nowhere:app --relay 127.0.0.1:9996", 2, "greentx: there is no module 'cli_nowhere', in "),
        ("relay --connect mongrel2://x@y --set a=1", 2, "greentx: --set: for a front end of our own (--bind)"),
        ("relay --keyfile x", 2, "greentx: --keyfile needs --certfile"),
        ("serve --bind :0", 2, "greentx: which application? Write greentx serve MODULE:APP, or set GREENTX_APP"),
        ("serve cli_app:app --bind 192.0.2.1:8000", 1, "greentx: 192.0.2.1:8000 cannot be bound: "),
        ("serve cli_app:app --bind 192.0.2.1:8000 --reload", 1, "greentx: 192.0.2.1:8000 cannot be bound: "),
        (
            "serve cli_app:app --bind :0 --access-log /nowhere/log",
            1,
            "greentx: /nowhere/log: No such file or directory",
        ),
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


@pytest.mark.mongrel2
def test_an_address_in_use_is_told_in_words(folder):
    """Those of the system, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run(folder, "serve", "cli_app", "--bind", address, "--log-level", "error")
    assert done.returncode == 1
    assert done.stderr == (
        f"greentx: {address} cannot be bound: Address already in use; another program listens there: end it, or choose "
        "another port with --bind (0: a free one)\n"
    )


def test_a_failure_of_the_application_is_shown(folder):
    """Its traceback is what its author needs."""
    done = run(folder, "serve", "cli_fails:app", "--bind", ":0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: while importing"


def test_keys_are_made_where_they_are_wanted_and_never_again(tmp_path):
    """Two files, of which the secret one is the user's alone; the second time is an error in a line."""
    done = run(tmp_path, "keys", "api", "--folder", "keys")
    assert (done.returncode, done.stderr) == (0, "")
    public, secret = (tmp_path / "keys" / name for name in ("api.key", "api.key_secret"))
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["keys/api.key", "keys/api.key_secret"]
    assert load_keys(secret).public == public_key(public)
    assert [path.stat().st_mode & 0o777 for path in (secret, secret.parent)] == [0o600, 0o700]
    before = secret.read_bytes()
    done = run(tmp_path, "keys", "api", "--folder", "keys")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("greentx: keys/api.key is there already") and done.stderr.count("\n") == 1
    assert secret.read_bytes() == before
    assert run(tmp_path, "keys", "a/b").returncode == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "127.0.0.1"], "is not a port"),
        (["--control", "9997"], "has no host"),
        (["--control", "127.0.0.1:x"], "is not a port"),
        (["--control", "127.0.0.1:0", "--control-allow", "everybody"], "control_allow: 'everybody'"),
        (["--control", "127.0.0.1:0", "--curve-allow", "keys"], "curve_secret and curve_allow go together"),
        (["--control-allow", "10.0.0.0/8"], "there is no control socket to be protected"),
    ],
)
def test_a_control_socket_that_cannot_be_is_told_in_a_line(folder, options, said):
    """Before anything starts; exit code 2."""
    done = run(folder, "serve", "cli_app:app", "--connect", "mongrel2://a@127.0.0.1", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
