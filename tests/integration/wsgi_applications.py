"""Applications as people write them, in several frameworks; :func:`all_of_them` serves each under its name."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any
from wsgiref.util import shift_path_info

FILE = hashlib.sha256(b"seed").digest() * 98304  # 3 MB
DIGEST = hashlib.sha256(FILE).hexdigest()


def pages() -> Iterator[bytes]:
    for number in range(1000):
        yield b"line %d\n" % number


def digest_of(file: Any) -> str:
    digest = hashlib.sha256()
    while data := file.read(65536):
        digest.update(data)
    return digest.hexdigest()


def flask_application() -> Any:
    import flask

    application = flask.Flask("test")

    @application.get("/get")
    def get() -> Any:
        return f"hello {flask.request.args['name']}"

    @application.post("/form")
    def form() -> Any:
        return "&".join(f"{key}={value}" for key, value in sorted(flask.request.form.items()))

    @application.post("/upload")
    def upload() -> Any:
        return digest_of(flask.request.files["file"].stream)

    @application.get("/cookies")
    def cookies() -> Any:
        answer = flask.make_response(flask.request.cookies.get("seen", "nothing"))
        answer.set_cookie("seen", "1")
        answer.set_cookie("other", "2")
        return answer

    @application.get("/redirect")
    def redirect() -> Any:
        return flask.redirect("/get?name=again")

    @application.get("/error")
    def error() -> Any:
        raise ValueError("a failure of the application")

    @application.get("/stream")
    def stream() -> Any:
        return flask.Response(pages(), mimetype="text/plain")

    @application.get("/file")
    def file() -> Any:
        return flask.send_file(io.BytesIO(FILE), mimetype="application/octet-stream")

    return application


def bottle_application() -> Any:
    import bottle

    application = bottle.Bottle()

    @application.get("/get")
    def get() -> Any:
        return f"hello {bottle.request.query.getunicode('name')}"

    @application.post("/form")
    def form() -> Any:
        return "&".join(f"{key}={value}" for key, value in sorted(bottle.request.forms.items()))

    @application.post("/upload")
    def upload() -> Any:
        return digest_of(bottle.request.files["file"].file)

    @application.get("/cookies")
    def cookies() -> Any:
        bottle.response.set_cookie("seen", "1")
        bottle.response.set_cookie("other", "2")
        return bottle.request.get_cookie("seen") or "nothing"

    @application.get("/redirect")
    def redirect() -> Any:
        bottle.redirect("/get?name=again")

    @application.get("/error")
    def error() -> Any:
        raise ValueError("a failure of the application")

    @application.get("/stream")
    def stream() -> Any:
        bottle.response.content_type = "text/plain"
        return pages()

    @application.get("/file")
    def file() -> Any:
        bottle.response.content_type = "application/octet-stream"
        return io.BytesIO(FILE)

    return application


def falcon_application() -> Any:
    import falcon

    class Get:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.text = f"hello {req.get_param('name')}"

    class Form:
        def on_post(self, req: Any, resp: Any) -> None:
            form = req.get_media()
            resp.text = "&".join(f"{key}={value}" for key, value in sorted(form.items()))

    class Upload:
        def on_post(self, req: Any, resp: Any) -> None:
            for part in req.get_media():
                resp.text = digest_of(part.stream)

    class Cookies:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.text = (req.get_cookie_values("seen") or ["nothing"])[0]
            resp.set_cookie("seen", "1", secure=False)
            resp.set_cookie("other", "2", secure=False)

    class Redirect:
        def on_get(self, req: Any, resp: Any) -> None:
            raise falcon.HTTPFound("/get?name=again")

    class Error:
        def on_get(self, req: Any, resp: Any) -> None:
            raise ValueError("a failure of the application")

    class Stream:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.content_type = "text/plain"
            resp.stream = pages()

    class File:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.content_type = "application/octet-stream"
            resp.stream = io.BytesIO(FILE)  # by way of wsgi.file_wrapper

    application = falcon.App()
    application.req_options.strip_url_path_trailing_slash = True
    for route in (Get, Form, Upload, Cookies, Redirect, Error, Stream, File):
        application.add_route(f"/{route.__name__.lower()}", route())
    return application


def django_application() -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
    from django.urls import path

    def cookies(request: Any) -> Any:
        answer = HttpResponse(request.COOKIES.get("seen", "nothing"))
        answer.set_cookie("seen", "1")
        answer.set_cookie("other", "2")
        return answer

    def error(request: Any) -> Any:
        raise ValueError("a failure of the application")

    class Urls:
        urlpatterns = (
            path("get", lambda request: HttpResponse(f"hello {request.GET['name']}")),
            path(
                "form",
                lambda request: HttpResponse(
                    "&".join(f"{key}={value}" for key, value in sorted(request.POST.items())),
                ),
            ),
            path("upload", lambda request: HttpResponse(digest_of(request.FILES["file"]))),
            path("cookies", cookies),
            path("redirect", lambda request: HttpResponseRedirect("/get?name=again")),
            path("error", error),
            path("stream", lambda request: StreamingHttpResponse(pages(), content_type="text/plain")),
            path("file", lambda request: FileResponse(io.BytesIO(FILE), content_type="application/octet-stream")),
        )

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], SECRET_KEY="test", ROOT_URLCONF=Urls, MIDDLEWARE=[], LOGGING_CONFIG=None
        )
        django.setup()
    return get_wsgi_application()


def flask_sock_application() -> Any:
    import flask
    import flask_sock

    application = flask.Flask("test")
    sock = flask_sock.Sock(application)

    @sock.route("/echo")
    def echo(ws: Any) -> None:
        while True:
            ws.send(ws.receive())

    return application


def flask_sockets_application() -> Any:
    """As Flask-Sockets has its routes called: with the object of gevent-websocket."""
    import flask

    application = flask.Flask("test")

    @application.route("/echo", websocket=True)
    def echo() -> Any:
        ws = flask.request.environ["wsgi.websocket"]
        while not ws.closed:
            message = ws.receive()
            if message is not None:
                ws.send(message)
        return ""

    return application


def socketio_application() -> Any:
    import socketio

    sio = socketio.Server(async_mode="gevent", ping_interval=1)

    @sio.event
    def shout(sid: str, data: str) -> int:
        sio.emit("shouted", data.upper(), to=sid)
        return len(data)

    return socketio.WSGIApp(sio)


APPLICATIONS = {
    "flask": flask_application,
    "bottle": bottle_application,
    "falcon": falcon_application,
    "django": django_application,
}

WEBSOCKET_APPLICATIONS = {
    "flask-sock": flask_sock_application,
    "flask-sockets": flask_sockets_application,
    "socketio": socketio_application,
}


def all_of_them() -> Any:
    """Return an application that has each of them under ``/NAME``."""
    applications = {name: make() for name, make in (APPLICATIONS | WEBSOCKET_APPLICATIONS).items()}

    def application(environ: Any, start_response: Any) -> Any:
        return applications[str(shift_path_info(environ))](environ, start_response)

    return application
