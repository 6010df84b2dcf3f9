"""A ping round during which the server restarts: the new connections with the same numbers are strangers."""

from __future__ import annotations

import pytest
from websockets_bench import SENDER, Bench

from greentx.protocol.websocket.registry import CLOSED


@pytest.mark.parametrize("restarts", [True, False])
def test_who_ended_while_the_control_port_was_asked_is_not_pinged(restarts: bool) -> None:
    """Those to be pinged, those pinged again as they read, and those spared as they send."""
    bench = Bench()
    first, silent, sends = entries = bench.connect("1", "2", "3")
    silent.awaits_pong = sends.awaits_pong = True

    def sending(conn_ids: list[str]) -> list[str]:
        assert conn_ids == ["2", "3"]
        if restarts:
            bench.sessions.lost()
            bench.connect("1", "2", "3")
            bench.writer.sent.clear()
        return ["3"]

    bench.sessions.ping(entries, b"ping", SENDER, sending=sending)
    if restarts:
        assert bench.writer.sent == []
        assert {entry.state for entry in entries} == {CLOSED}
        assert len(bench.registry) == 3
    else:
        assert (["1", "3"], b"ping") in bench.writer.sent
        assert first.awaits_pong and silent.state == CLOSED
