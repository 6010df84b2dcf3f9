"""The stand-in for gevent-websocket: there when it was asked for, and only then."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSTALL = "from greentx.compat import install_geventwebsocket; install_geventwebsocket()\n"


def run(script: str) -> str:
    """Run *script* in a Python of its own and return the last line of its standard error, "" where all is well."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30)
    return (done.stderr.splitlines() or [""])[-1]


def test_it_has_the_names_that_people_import():
    """Each name is the class or constant of greentx.wsgi, from wherever it is imported; twice is once."""
    script = (
        INSTALL
        + INSTALL
        + "from geventwebsocket import Resource, WebSocketApplication, WebSocketError, WebSocketServer\n"
        "from geventwebsocket.exceptions import FrameTooLargeException, ProtocolError, WebSocketError as E\n"
        "from geventwebsocket.handler import Client, WebSocketHandler\n"
        "from geventwebsocket.protocols.base import BaseProtocol\n"
        "from geventwebsocket.resource import Resource as R, WebSocketApplication as A\n"
        "from geventwebsocket.server import WebSocketServer as S\n"
        "from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_CLOSED, MSG_SOCKET_DEAD, WebSocket\n"
        "import geventwebsocket.websocket, socket\n"
        "from greentx.wsgi import websocket as ours\n"
        "assert (Resource, WebSocketApplication, WebSocketServer) == (R, A, S)\n"
        "assert (Resource, WebSocket) == (ours.Resource, ours.WebSocket)\n"
        "assert (BaseProtocol, Client, WebSocketHandler) == (ours.Protocol, ours.Client, ours.WebSocketHandler)\n"
        "assert E is WebSocketError and issubclass(E, socket.error)\n"
        "assert issubclass(FrameTooLargeException, ProtocolError) and issubclass(ProtocolError, E)\n"
        "texts = 'Connection is already closed', 'Connection closed', 'Socket is dead'\n"
        "assert (MSG_ALREADY_CLOSED, MSG_CLOSED, MSG_SOCKET_DEAD) == texts\n"
    )
    assert run(script) == ""


def test_it_has_what_examples_print_and_what_programs_of_the_package_reach_for():
    """The version, where it is, loggers, gunicorn's worker, and the methods that subclasses call."""
    script = (
        INSTALL + "import geventwebsocket, os\n"
        "from geventwebsocket import VERSION, get_version\n"
        "from geventwebsocket.gunicorn.workers import GeventWebSocketWorker\n"
        "from geventwebsocket.logging import create_logger\n"
        "from geventwebsocket.server import WebSocketHandler\n"
        "from geventwebsocket.utils import get_version as g\n"
        "from geventwebsocket.websocket import FrameTooLargeException, ProtocolError, WebSocket\n"
        "from greentx.gunicorn import Worker\n"
        "assert os.path.isdir(os.path.dirname(geventwebsocket.__file__))\n"
        "assert VERSION[:3] == (0, 10, 1) and get_version() == geventwebsocket.__version__ == '0.10.1'\n"
        "versions = (1, 0, 0, 'final', 0), (0, 4, 0, 'alpha', 0), (1, 2, 3, 'rc', 4)\n"
        "assert [g(one) for one in versions] == ['1.0', '0.4a0', '1.2.3rc4']\n"
        "assert GeventWebSocketWorker is Worker\n"
        "assert create_logger('some', True, '%(message)s').level == 10 and create_logger('other').level == 0\n"
        "assert '13' in WebSocketHandler.SUPPORTED_VERSIONS\n"
        "assert all(hasattr(WebSocket, name) for name in ('handle_ping', 'handle_pong', 'handle_close'))\n"
        "assert not hasattr(geventwebsocket.gunicorn.workers, 'Other')\n"
        "from importlib.util import find_spec\n"
        "assert find_spec('geventwebsocket').name == 'geventwebsocket' and find_spec('geventwebsocket.handler')\n"
        "assert find_spec('geventwebsocket.wamp') is None\n"
    )
    assert run(script) == ""


def test_its_handler_says_what_to_use_where_it_gets_into_gevents_own_server():
    """The package's README has gevent's server; that one reads sockets."""
    script = (
        INSTALL + "import gevent.pywsgi, gevent.socket\n"
        "from geventwebsocket.handler import WebSocketHandler\n"
        "server = gevent.pywsgi.WSGIServer(('127.0.0.1', 0), None, handler_class=WebSocketHandler)\n"
        "with gevent.socket.socket() as sock: server.handler_class(sock, ('', 0), server)\n"
    )
    assert run(script).startswith("TypeError: greentx's WebSocketHandler cannot work for gevent.pywsgi.WSGIServer: use")


def test_it_is_not_there_before():
    """Importing greentx.compat registers nothing, and what the stand-in does not have is an ImportError."""
    script = (
        "import sys, greentx.compat\n"
        "assert not [name for name in sys.modules if name.startswith('geventwebsocket')]\n"
        "greentx.compat.install_geventwebsocket()\n"
        "import geventwebsocket.wamp\n"
    )
    assert run(script) == "ModuleNotFoundError: No module named 'geventwebsocket.wamp'"


def test_the_real_package_is_not_replaced_behind_its_users_back():
    """Who imported it already holds classes of another server: that is said."""
    script = f"import sys, types\nsys.modules['geventwebsocket'] = types.ModuleType('geventwebsocket')\n{INSTALL}"
    assert run(script) == "RuntimeError: geventwebsocket was imported already, from None"


#: As where the package is not installed.
MISSING = "import sys\nsys.modules['geventwebsocket'] = None\n"


@pytest.mark.parametrize(("before", "expected"), [(MISSING, "SimpleWebSocketWSGI"), (INSTALL, "object")])
def test_engineio_chooses_by_it(before, expected):
    """Its gevent mode speaks to wsgi.websocket with the stand-in, and to a socket without."""
    script = before + (
        "from engineio.async_drivers.gevent import WebSocketWSGI\n"
        f"assert WebSocketWSGI.__base__.__name__ == {expected!r}, WebSocketWSGI.__base__\n"
    )
    assert run(script) == ""
