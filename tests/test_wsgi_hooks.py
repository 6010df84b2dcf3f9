"""What a program may put in the place of the WSGI server's own classes."""

from __future__ import annotations

import functools

import gevent.pywsgi
import pytest

from greentx.wsgi import WSGIHandler, WSGIServer
from greentx.wsgi.websocket import WebSocketHandler


class OfGevent(gevent.pywsgi.WSGIHandler):
    """What a program has that was written for gevent's server."""


class OfGeventWebsocket(gevent.pywsgi.WSGIHandler):
    """Stands for gevent-websocket's handler, which is a subclass of gevent's."""

    __module__ = "geventwebsocket.handler"


class OfBoth(WSGIHandler, gevent.pywsgi.WSGIHandler):
    """Derived from both: the order of its bases would decide which one reads requests."""


@pytest.mark.parametrize(
    ("handler_class", "words"),
    [
        (gevent.pywsgi.WSGIHandler, ["gevent.pywsgi.WSGIHandler", "derive it from greentx.wsgi.WSGIHandler"]),
        (OfGevent, ["OfGevent", "derive it from greentx.wsgi.WSGIHandler"]),
        (OfBoth, ["OfBoth", "derive it from greentx.wsgi.WSGIHandler"]),
        (OfGeventWebsocket, ["leave it out", "greentx.wsgi.websocket.WebSocketHandler"]),
        (type("OfThose", (OfGeventWebsocket,), {}), ["leave it out", "greentx.wsgi.websocket.WebSocketHandler"]),
        (functools.partial(OfGevent, rfile=None), ["OfGevent", "derive it from greentx.wsgi.WSGIHandler"]),
        (dict, ["dict", "not a subclass of greentx.wsgi.WSGIHandler"]),
        ("geventwebsocket.handler.WebSocketHandler", ["cannot be called", "greentx.wsgi.WSGIHandler"]),
    ],
)
def test_a_handler_class_of_another_server_is_a_type_error_that_says_what_to_use(handler_class, words):
    """When the server is made, also where it is an attribute of a subclass."""
    with pytest.raises(TypeError) as caught:
        WSGIServer(("127.0.0.1", 0), handler_class=handler_class)
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(TypeError):
        # Python 3.13 warns of a partial() that is an attribute of a class as it is.
        type("Server", (WSGIServer,), {"handler_class": staticmethod(handler_class)})(("127.0.0.1", 0))


@pytest.mark.parametrize("handler_class", [None, WSGIHandler, WebSocketHandler, functools.partial(WSGIHandler)])
def test_our_own_handler_classes_and_what_makes_them_are_accepted(handler_class):
    """Any callable may make one."""
    server = WSGIServer(("127.0.0.1", 0), handler_class=handler_class)
    assert server.handler_class is (WSGIHandler if handler_class is None else handler_class)
    WSGIServer(("127.0.0.1", 0), handler_class=lambda *args: WSGIHandler(*args))
