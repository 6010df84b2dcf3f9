"""A WSGI server behind Mongrel2, with the interface of ``gevent.pywsgi``.

``from greentx.wsgi import WSGIServer`` in the place of ``from gevent.pywsgi import WSGIServer`` is all there is to it:
on a TCP address the server brings its own ``mongrel2`` along.
"""

from __future__ import annotations

from gevent.pywsgi import Environ, LoggingLogAdapter, SecureEnviron, WSGISecureEnviron

from ..protocol.proxies import TrustedProxies
from .exchange import Exchange
from .handler import WSGIHandler
from .response import FileWrapper
from .server import WSGIServer

__all__ = [
    "Environ",
    "Exchange",
    "FileWrapper",
    "LoggingLogAdapter",
    "SecureEnviron",
    "TrustedProxies",
    "WSGIHandler",
    "WSGISecureEnviron",
    "WSGIServer",
]
