"""Greet over HTTP, echo over WebSockets; for a Mongrel2 whose handler "echo" has the ports 9999 and 9998."""

from greentx import Connection, Request, Transceiver, WebSocket


def hello(conn: Connection, req: Request) -> None:
    conn.reply_http(req, f"Hello from {req.path}\n")


def echo(ws: WebSocket) -> None:
    for message in ws:
        ws.send(message)


with Transceiver("echo", ("127.0.0.1", 9999), ("127.0.0.1", 9998)) as trans:
    trans.serve(hello, websocket=echo)
