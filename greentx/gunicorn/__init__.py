"""A worker class for gunicorn: ``gunicorn -k greentx.gunicorn.Worker MODULE:APP``.

Requests come from Mongrel2, whose address is a URL ``mongrel2://SENDER@HOST?pull=9999&pub=9998``. It is said as all
settings are, by a name in gunicorn's configuration file or by a variable of the environment::

    worker_class = "greentx.gunicorn.Worker"
    greentx_connect = "mongrel2://sender@127.0.0.1?pull=9999&pub=9998"     # or GREENTX_CONNECT

============================  ==================================================================================
``greentx_connect``           the URL; several of them, in a list or with spaces in between, are served at once
``greentx_origins``           ``origins`` of :class:`~greentx.wsgi.WSGIServer`: a list, or a text with commas or
                              spaces in between: ``same``, ``https://example.org``, ``none`` for programs
``greentx_max_message_size``  bytes of a WebSocket message; 0 sets no limit
``greentx_max_queue_bytes``   bytes that may wait for one connection
``greentx_max_pending_bytes`` the same for all
``greentx_ping_timeout``      seconds between two pings of a WebSocket; 0 sends no pings
``greentx_upload_store``      Mongrel2's ``upload.temp_store``, as the workers see it
``greentx_control``           ``HOST:PORT`` that a control socket binds; without it there is none. With several workers
                              the port is 0: any free one for each
``greentx_control_allow``     networks that it answers to, in a list or with spaces in between
``greentx_curve_secret``      a file with its CURVE keys
``greentx_curve_allow``       a folder, or files, of the keys that it answers to; with ``greentx_curve_secret``
``greentx_relay``             1, true, yes or on: a relay in front keeps each connection with one worker; 0, false, no
                              or off: there is none
``greentx_shared``            the same words: other programs serve the same handler entry, as a second gunicorn does
============================  ==================================================================================

Each is ``GREENTX_...`` in the environment, or in gunicorn's ``--env``, which comes first. A name that is not in the
table, or a value that is not valid, ends gunicorn with a line that names it. Settings of Mongrel2 itself
(``limits.content_length``, ...) are set where that is configured.

gunicorn's ``forwarded_allow_ips`` and ``secure_scheme_headers`` say which proxies in front of Mongrel2 are believed, as
:class:`~greentx.wsgi.TrustedProxies` does: also who the client is, which gunicorn itself does not read.

gunicorn binds a socket of its own as well; say ``--bind 127.0.0.1:0``. It refuses all connections, since no worker
would serve them.

With several workers, or with ``greentx_shared``, Mongrel2 hands its messages out in turn, notices too. So nothing waits
for what another worker may get (see ``shared`` of a :class:`~greentx.Transceiver`), and what would scatter is refused.
A request for a WebSocket gets a 503, also while gunicorn runs more workers than it was configured for (SIGTTIN; those
that are open already are not kept together). A streamed body (``upload.stream``) gets a 413. Requests that a client
pipelines scatter, too. Nothing can put the answers of two processes in order, and answers that go out in several
messages are mixed into each other, byte for byte. A warning says so at the start.

A worker that ends answers what it has received. So that Mongrel2 hands it nothing in the moment in which it leaves, it
stops itself and the other workers for some milliseconds then, by the signal SIGURG.
"""

from __future__ import annotations

from .settings import CONNECT_VARIABLE
from .worker import Handler, Worker

__all__ = ["CONNECT_VARIABLE", "Handler", "Worker"]
