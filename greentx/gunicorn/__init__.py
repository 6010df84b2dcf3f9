"""A worker class for gunicorn: ``gunicorn -k greentx.gunicorn.Worker MODULE:APP``.

Requests come from Mongrel2, whose address is a URL ``mongrel2://SENDER@HOST?pull=9999&pub=9998``. It is said as all
settings are, by a name in gunicorn's configuration file or by a variable of the environment::

    worker_class = "greentx.gunicorn.Worker"
    greentx_connect = "mongrel2://sender@127.0.0.1?pull=9999&pub=9998"     # or GREENTX_CONNECT

============================  ==================================================================================
``greentx_connect``           the URL; several of them, in a list or with spaces in between, are served at once
``greentx_bind``              in its place ``HOST:PORT``, where a front end of our own listens
``greentx_front_end``         which one that is: ``mongrel2``, ``edge`` (the embedded one), or ``auto``
``greentx_origins``           ``origins`` of :class:`~greentx.wsgi.WSGIServer`: a list, or a text with commas or
                              spaces in between: ``same``, ``https://example.org``, ``none`` for programs
``greentx_max_message_size``  bytes of a WebSocket message; 0 sets no limit
``greentx_max_queue_bytes``   bytes that may wait for one connection
``greentx_max_pending_bytes`` the same for all
``greentx_ping_timeout``      seconds between two pings of a WebSocket; 0 sends no pings
``greentx_upload_store``      Mongrel2's ``upload.temp_store``, as the workers see it
``greentx_control``           ``HOST:PORT`` that a control socket binds, the relay's; without it there is none. With a
                              relay elsewhere it is each worker's, so that several of them need port 0, any free one
``greentx_control_allow``     networks that it answers to, in a list or with spaces in between
``greentx_curve_secret``      a file with its CURVE keys
``greentx_curve_allow``       a folder, or files, of the keys that it answers to; with ``greentx_curve_secret``
``greentx_retry``             which requests go to another worker where one died over them: a list of methods, or a
                              text with commas or spaces in between (GET, HEAD, OPTIONS)
``greentx_relay``             ``HOST:PORT`` of a relay that runs elsewhere (``greentx relay``): then the workers
                              start none
============================  ==================================================================================

Each is ``GREENTX_...`` in the environment, or in gunicorn's ``--env``, which comes first. A name that is not in the
table, or a value that is not valid, ends gunicorn with a line that names it. Settings of Mongrel2 itself
(``limits.content_length``, ...) are set where that is configured.

gunicorn's ``forwarded_allow_ips`` and ``secure_scheme_headers`` say which proxies in front of Mongrel2 are believed, as
:class:`~greentx.wsgi.TrustedProxies` does: also who the client is, which gunicorn itself does not read.

gunicorn binds a socket of its own as well; say ``--bind 127.0.0.1:0``. It refuses all connections, since no worker
would serve them.

The relay
=========

Mongrel2 deals its messages to all processes that are connected, in turn. So one process is connected, the relay, and
the workers, also a single one, are its Nodes (:mod:`greentx.relay`)::

    Mongrel2 --> relay --> worker, worker, worker --> Mongrel2

The arbiter starts it, with the settings of that time, and it is the same as long as gunicorn runs, through SIGHUP and
SIGUSR2. It loads no application. All of one browser connection goes to one worker. The relay keeps WebSockets: a worker
may end, and they go on in another one, whose application is called with ``environ["greentx.adopted"]``.

* SIGHUP, SIGTTOU, ``max_requests``: a worker goes on to serve until the one is there that takes its place; then it
  leaves, one after the other. Requests that nobody can be given wait, for 30 s.
* A worker that dies, or is killed as it was silent for ``timeout``: another one gets its requests of methods in
  ``greentx_retry``, unless it is the second one that died over them; the others get a 502. The next worker is made at
  once. Where workers die again and again before they have served for 5 s, each waits before it imports the application,
  twice as long as the one before, 15 s at the most; SIGHUP begins anew.
* The relay's process dies: one worker ends by itself, since the arbiter starts the relay anew before it makes the next
  worker; at once the first time, else each 5 s. Its WebSockets are lost. A relay that cannot start at all ends gunicorn
  with exit code 3.
* SIGTERM: WebSockets are closed (1001), the workers finish, then the relay ends. It does so too when the arbiter is
  killed.

Changed settings of the relay count when gunicorn is started the next time; a WARNING says so at a SIGHUP.
"""

from __future__ import annotations

from .settings import CONNECT_VARIABLE
from .worker import Handler, Worker

__all__ = ["CONNECT_VARIABLE", "Handler", "Worker"]
