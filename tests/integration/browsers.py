"""Many WebSocket clients in one process, with asyncio and nothing else.

``python browsers.py PORT COUNT SECONDS [PAUSE]``

Each opens a connection, sends a message about every PAUSE seconds (1), expects its echo, and answers pings. After
SECONDS each closes properly. Prints one JSON object: how many were opened, echoes and pings seen, what was lost and
why, and by how many seconds this process was ever late, which delayed pongs, too.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys

MASK = bytes(4)  # XOR with zeros: masked, and readable


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length >= 126:
        length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
    return first & 0x0F, await reader.readexactly(length)


def frame(opcode: int, payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes((0x80 | opcode, 0x80 | len(payload))) + MASK + payload


async def browse(port: int, number: int, seconds: float, pause: float, found: dict[str, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise AssertionError(head)
    found["opened"] += 1
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    sent = 0

    async def talk() -> None:
        nonlocal sent
        await asyncio.sleep(number % 100 / 100 * pause)
        while loop.time() < end - 1:
            writer.write(frame(1, b"%d of %d" % (sent, number)))
            sent += 1
            await asyncio.sleep(min(pause, end - loop.time()))  # this is the pace
        await asyncio.sleep(max(0, end - loop.time()))
        writer.write(frame(8, b"\x03\xe8"))

    talking = asyncio.ensure_future(talk())
    echoes = 0
    while True:
        opcode, payload = await read_frame(reader)
        if opcode == 9:
            found["pings"] += 1
            writer.write(frame(10, payload))
        elif opcode == 1:
            if payload != b"%d of %d" % (echoes, number):
                raise AssertionError(payload)
            echoes += 1
            found["echoes"] += 1
        elif opcode == 8:
            if payload != b"\x03\xe8" or not talking.done():
                raise AssertionError(f"closed with {payload!r}")
            break
    if echoes != sent:
        raise AssertionError(f"{echoes} echoes of {sent} messages")
    if await reader.read() != b"":
        raise AssertionError("something came after the close frame")
    writer.close()


async def look_at_clock(late: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await asyncio.sleep(0.05)  # what it takes longer, others had to wait as well
        late.append(max(late.pop(), loop.time() - began - 0.05))


async def main(port: int, count: int, seconds: float, pause: float = 1.0) -> None:
    found = {"opened": 0, "echoes": 0, "pings": 0}
    late = [0.0]
    looking = asyncio.ensure_future(look_at_clock(late))
    tasks = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(browse(port, number, seconds, pause, found)))
        if number % 20 == 19:
            await asyncio.sleep(0.01)  # not all at once: the server's backlog is short
    lost = [f"{one!r}" for one in await asyncio.gather(*tasks, return_exceptions=True) if one is not None]
    looking.cancel()
    sys.stdout.write(json.dumps({**found, "lost": len(lost), "why": lost[:5], "late": round(late[0], 2)}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), *(float(one) for one in sys.argv[3:])))
