"""Real applications behind a real Mongrel2: what people bring along works."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from http_rig import Browser
from wsgi_rig import serving, talk

from greentx.wsgi import WSGIServer

pytestmark = pytest.mark.mongrel2

FILE = hashlib.sha256(b"seed").digest() * 98304  # 3 MB
DIGEST = hashlib.sha256(FILE).hexdigest()
BOUNDARY = "----boundary"


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


APPLICATIONS = {
    "flask": flask_application,
    "bottle": bottle_application,
    "falcon": falcon_application,
    "django": django_application,
}


def cookies_of(answer: Any) -> str:
    return "; ".join(value.partition(";")[0] for value in answer.headers.get_all("set-cookie"))


@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_application_works(name: str) -> None:
    """GET, form, upload, cookies, redirect, error, streaming, a file; all over one connection."""
    make: Callable[[], Any] = APPLICATIONS[name]
    with serving("greentx", make()) as server, Browser(server) as browser:
        assert browser.get("/get?name=w%C3%B6rld").body.decode() == "hello w\xf6rld"
        form = "Content-Type: application/x-www-form-urlencoded"
        assert browser.get("/form", form, method="POST", body=b"b=2&a=1%202").body == b"a=1 2&b=2"
        body = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body += FILE + f"\r\n--{BOUNDARY}--\r\n".encode()
        multipart = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
        for _ in range(2):
            assert browser.get("/upload", multipart, method="POST", body=body).body == DIGEST.encode()
        answer = browser.get("/cookies")
        assert answer.body == b"nothing" and sorted(cookies_of(answer).split("; ")) == ["other=2", "seen=1"]
        assert browser.get("/cookies", f"Cookie: {cookies_of(answer)}").body == b"1"
        answer = browser.get("/redirect")
        assert answer.status in (302, 303) and str(answer.headers["location"]).endswith("/get?name=again")
        answer = browser.get("/error")
        assert answer.status == 500 and b"a failure of the application" not in answer.body
        assert browser.get("/missing").status == 404
        answer = browser.get("/stream")
        assert answer.body == b"".join(pages()) and answer.headers.get("transfer-encoding") == "chunked"
        assert browser.get("/file").body == FILE
        answer = browser.get("/file", method="HEAD")
        assert answer.body == b"" and answer.status in (200, 404, 405)
        assert browser.get("/get?name=end").body == b"hello end"


def test_urls_of_careless_clients_are_served() -> None:
    """As gevent does: characters that belong percent-encoded, and are sent as they are."""
    with gevent.Timeout(30), serving("greentx", lambda environ, start: [start("200 OK", []), b""][1:]) as server:
        with Browser(server, timeout=5.0) as browser:
            for character in "{}^!$&'()*+,-./:;=@_~":
                for url in (f"/a{character}b", f"/a?{character}=b"):
                    assert browser.get(url).status == 200, url


def test_forged_upload_headers_delete_nothing(start_mongrel2: Callable[..., Any], tmp_path: Path) -> None:
    """Where Mongrel2 waits for no body the names are the client's; where it does, its file goes whatever the length."""
    store = f"{tmp_path}/up.XXXXXX"
    front = start_mongrel2(settings={"upload.temp_store": store, "limits.content_length": 65536})
    (handler,) = front.handlers
    mine = tmp_path / "up.aaaaaa"
    mine.write_bytes(b"of somebody else")
    server = WSGIServer(
        (handler.sender, handler.send_spec, handler.recv_spec), None, log=None, error_log=None, upload_store=store
    )
    names = f"x-mongrel2-upload-start: {mine}\r\nx-mongrel2-upload-done: {mine}\r\n"
    with gevent.Timeout(30), server:
        server.start()
        assert server.transceiver is not None
        server.transceiver.wait_ready(10)
        lengths = [f"Content-Length: {number}" for number in ("x", "-1", "2147483648", "4294967297")]
        for said in ("Transfer-Encoding: x", *lengths):
            request = f"POST / HTTP/1.1\r\nHost: localhost\r\n{names}{said}\r\n\r\n"
            assert talk(front.port, (request + request).encode()).startswith(b"HTTP/1.1 400 "), said
            assert mine.exists(), said
        for said in ("+70000", "70000x"):
            request = f"POST / HTTP/1.1\r\nHost: localhost\r\n{names}Content-Length: {said}\r\n\r\n"
            assert talk(front.port, request.encode() + b"x" * 70000).startswith(b"HTTP/1.1 400 "), said
            while len(list(tmp_path.iterdir())) > 1:
                gevent.sleep(0.005)
    assert list(tmp_path.iterdir()) == [mine]
