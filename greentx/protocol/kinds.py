"""What Mongrel2 and we call messages: the METHODs that are not HTTP's."""

from __future__ import annotations

from enum import Enum

__all__ = ["ENDS", "FRAMES", "HTTP_FORGERIES", "NO_ANSWER", "SOCKETS", "WEBSOCKETS", "Kind"]


class Kind(str, Enum):
    """METHOD of a message that is not plain HTTP; equal to its text.

    The first five are Mongrel2's own words. It writes none for a further piece of a streamed body, which has
    ``UPLOAD_STREAM`` here. The others are events that we make.
    """

    JSON = "JSON"
    XML = "XML"
    WEBSOCKET_HANDSHAKE = "WEBSOCKET_HANDSHAKE"
    WEBSOCKET = "WEBSOCKET"
    # On the control socket.
    MONGREL2 = "MONGREL2"
    UPLOAD_STREAM = "UPLOAD_STREAM"
    WEBSOCKET_CONNECT = "WEBSOCKET_CONNECT"
    WEBSOCKET_CLOSE = "WEBSOCKET_CLOSE"
    DISCONNECT = "DISCONNECT"

    __str__ = str.__str__


#: Messages of Mongrel2's own sockets, JSON and XML.
SOCKETS: frozenset[str] = frozenset({Kind.JSON, Kind.XML})

#: Events of a WebSocket that was let in.
WEBSOCKETS: frozenset[str] = frozenset({Kind.WEBSOCKET_CONNECT, Kind.WEBSOCKET, Kind.WEBSOCKET_CLOSE})

#: Those of them that a relay hands on; each Node is told of ends anyway.
FRAMES: frozenset[str] = frozenset({Kind.WEBSOCKET_CONNECT, Kind.WEBSOCKET})

#: Events that say that a connection has ended.
ENDS: frozenset[str] = frozenset({Kind.WEBSOCKET_CLOSE, Kind.DISCONNECT})

#: Events to which no HTTP answer is due.
NO_ANSWER: frozenset[str] = frozenset({*SOCKETS, *WEBSOCKETS, Kind.DISCONNECT, Kind.UPLOAD_STREAM})

#: Words that only Mongrel2 and we make up. As the method of an HTTP request they are somebody's forgery.
HTTP_FORGERIES: frozenset[str] = frozenset({*NO_ANSWER, Kind.WEBSOCKET_HANDSHAKE})
