"""The two programs of mongrel2-transceiver's README, word for word but for the import and the addresses.

They take the default ports, so each test runs in a network of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from own_network import NOBODY, Network, Program, own_network

#: How often a request is answered.
COUNT = 50

#: Behind the README's words the loop says what it saw, and answers; who has gone is not answered.
HANDLER = """\
import json
from greentx import Transceiver

mg2_ip		= {mg2_ip!r}
with Transceiver( sender	= 'rune',
                  pull_addr	= (mg2_ip, 9999),
                  pub_addr	= (mg2_ip, 9998) ) as trans:
    print("up", flush=True)
    for sid,conn,req in trans.recv():
        if req is not None:
            headers	= req.headers
            method	= headers.get('METHOD')
            query	= headers.get('QUERY', {{}})
            if not req.is_disconnect():
                print(json.dumps([sid, method, query]), flush=True)
                for n in range({count}):
                    conn.reply(req, 'answer %d' % n)
"""

#: Behind the README's words the client goes on to receive, and says what came, when, and how long leaving took.
SERVER = """\
import json
from time import monotonic as now
from greentx import Server

handler_ip	= {handler_ip!r}
with Server( sender	= "python_server",
             connect	= [ handler_ip ] ) as server:
    client	= server.client()
    began	= now()
    client.send('/')
    resp	= client.recv()
    got		= [resp]
    while len(got) < {count}:
        got.append(client.recv())
    took	= now() - began
    further	= client.recv(timeout=300)
    ports	= server.ip, server.push_port, server.sub_port, server.unclaimed, server.bad_replies
    leaving	= now()
left		= now() - leaving
print(json.dumps([[one and one.body.decode() for one in got], [one and one.conn_ids for one in got],
                  took, further is None, ports, left]), flush=True)
"""

#: A browser that takes what comes as it is.
BROWSER = """\
import socket, sys
with socket.create_connection(({address!r}, {port}), 10) as sock:
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    got = b""
    while len(got) < {size}:
        more = sock.recv(65536)
        assert more, got
        got += more
print(got.decode(), flush=True)
"""

MONGREL2 = """\
import sys
from greentx.edge import Handler, Mongrel2
entry = Handler("rune", "tcp://{address}:9999", "tcp://{address}:9998")
with Mongrel2({{"/": entry}}, bind_addr={address!r}) as mongrel2:
    print(mongrel2.port, flush=True)
    sys.stdin.read(1)
"""

ANSWERS = [f"answer {number}" for number in range(COUNT)]


@pytest.fixture
def network() -> Iterator[Network]:
    with own_network() as one:
        yield one


def start_handler(network: Network) -> Program:
    handler = network.start(HANDLER.format(mg2_ip=NOBODY, count=COUNT))
    assert handler.line() == "up"
    return handler


def check_server(network: Network, handler_ip: str) -> None:
    """Run the server's program: it is connected, gets 50 messages and no other, and leaves soon."""
    server = network.start(SERVER.format(handler_ip=handler_ip, count=COUNT))
    bodies, conn_ids, took, nothing_further, where, left = json.loads(server.line())
    assert bodies == ANSWERS
    assert conn_ids == [["1"]] * COUNT
    assert nothing_further
    assert took < 5
    assert left < 5
    assert where == [network.address, 9999, 9998, 0, 0]
    assert server.end() == 0


@pytest.mark.parametrize("handler_ip", ["of eth0", "127.0.0.1"])
def test_the_programs_of_the_old_readme_talk_to_each_other(network, handler_ip):
    """The client is connected, and each of 50 answers is a message; the handler saw the method and an empty query."""
    handler = start_handler(network)
    check_server(network, network.address if handler_ip == "of eth0" else handler_ip)
    assert json.loads(handler.line()) == [["python_server", "1"], "GET", {}]


def test_the_old_server_s_program_may_run_again_and_again(network):
    """One handler serves a second one by the same name, and a third, on the same ports."""
    handler = start_handler(network)
    for _ in range(3):
        check_server(network, network.address)
        assert json.loads(handler.line()) == [["python_server", "1"], "GET", {}]


def test_the_old_server_s_program_connects_several_handlers_by_default_ports_and_addresses(network):
    """An address that has no port means 9997, whichever way it is written."""
    start_handler(network)
    source = SERVER.format(handler_ip=network.address, count=COUNT)
    for addresses in ("( handler_ip, 9997 )", "handler_ip + ':9997'", "handler_ip"):
        server = network.start(source.replace("[ handler_ip ]", addresses))
        assert json.loads(server.line())[0] == ANSWERS
        assert server.end() == 0


@pytest.mark.mongrel2
def test_the_old_handler_s_program_serves_a_mongrel2_and_a_server_at_once(network):
    """The browser gets all bytes in order; the client of the Server gets 50 messages, before and after."""
    mongrel2 = network.start(MONGREL2.format(address=NOBODY))
    port = mongrel2.line()
    handler = start_handler(network)
    for _ in range(2):
        check_server(network, network.address)
        assert json.loads(handler.line()) == [["python_server", "1"], "GET", {}]
        text = "".join(ANSWERS)
        browser = network.start(BROWSER.format(address=NOBODY, port=port, size=len(text)))
        assert browser.line() == text
        assert browser.end() == 0
        (sender, _conn_id), method, query = json.loads(handler.line())
        assert (sender, method, query) == ("rune", "GET", {})
    mongrel2.tell("end")  # or its folder would stay
    assert mongrel2.end() == 0
