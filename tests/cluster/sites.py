"""What runs on the hosts of a cluster."""

from __future__ import annotations

from typing import Any

from crowds import HTTP_PORT, Crowd
from hosts import Cluster, Host, Program, until

SEND_PORT, RECV_PORT, NODE_PORT = 18081, 18082, 18083


class Front:
    """A host with a Mongrel2 that starts.

    Attributes:
        host: It.
        program: The Mongrel2; wait for it.
        entry: Its handler entry, as others see it: ``send_ident``, ``send_spec``, ``recv_spec``.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.host: Host = cluster.host(name)
        self.host.listen(HTTP_PORT, SEND_PORT, RECV_PORT)
        self.entry = self._entry(self.host.address)
        self.program = self.run()

    def _entry(self, address: str) -> list[Any]:
        return [self.host.name, f"tcp://{address}:{SEND_PORT}", f"tcp://{address}:{RECV_PORT}"]

    def run(self) -> Program:
        """Start the Mongrel2; again, where the one before it has gone with its host."""
        own = self.host.own_address
        self.program = self.host.run("mongrel2", bind=own, port=HTTP_PORT, entry=self._entry(own))
        return self.program


class Site:
    """Two Mongrel2, and browsers on a host of their own.

    Attributes:
        cluster: All hosts.
        fronts: The Mongrel2.
        browsers: The program with all browsers.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.fronts = [Front(cluster, name) for name in ("front1", "front2")]
        self.browsers = cluster.host("browsers").run("browsers")

    def crowd(self, kind: str, front: Front, number: int = 2, **options: Any) -> Crowd:
        """Start browsers at one Mongrel2."""
        return Crowd(self.browsers, kind, front.host, number, **{"pause": 0.02, "patience": 25.0, **options})


class PlainSite(Site):
    """One handler for both, without a relay.

    Attributes:
        back: Its host.
        handler: It.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.back: Host = cluster.host("back")
        servers = [front.entry for front in self.fronts]
        self.handler: Program = self.back.run("handler", servers=servers, ping_timeout=1.0)
        for program in (*(front.program for front in self.fronts), self.handler, self.browsers):
            program.wait_ready()
        self.handler.ask("wait_ready", timeout=20)

    def crowds(self, front: Front, **options: Any) -> list[Crowd]:
        """Two callers and two talkers."""
        return [self.crowd(kind, front, **options) for kind in ("callers", "talkers")]

    def why(self) -> list[str]:
        """Return what is not as it should be, as STATUS says."""
        return list(self.handler.ask("status")["why"])


class RelaySite(Site):
    """An API with a relay for both, and four Nodes, each on a host of its own.

    Attributes:
        back: The API's host.
        api: It.
        hosts: The Nodes', by their names.
        nodes: The Nodes, likewise.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.back: Host = cluster.host("api")
        self.back.listen(NODE_PORT)
        self.api = self.run_api()
        self.hosts = {name: cluster.host(name) for name in ("node1", "node2", "node3", "node4")}
        self.nodes: dict[str, Program] = {}
        for name in self.hosts:
            self.run_node(name)
        for program in (*(front.program for front in self.fronts), self.api, *self.nodes.values(), self.browsers):
            program.wait_ready()
        self.wait_whole()

    def run_api(self) -> Program:
        """Start the API."""
        servers = [front.entry for front in self.fronts]
        node_addr = [self.back.own_address, NODE_PORT]
        self.api = self.back.run("api", servers=servers, node_addr=node_addr, ping_timeout=2.0)
        return self.api

    def run_node(self, name: str) -> Program:
        """Start a Node on its host."""
        self.nodes[name] = self.hosts[name].run("node", relay_addr=[self.back.address, NODE_PORT], name=name)
        return self.nodes[name]

    def present(self) -> set[str]:
        """Return the Nodes that are there, as the relay says."""
        return {node["name"] for node in self.relay()["nodes"]}

    def relay(self) -> dict[str, Any]:
        """Return what the relay says of itself."""
        return dict(self.api.ask("relay"))

    def wait_whole(self, timeout: float = 20.0) -> None:
        """Wait until everything is there, and each Node can answer both Mongrel2."""
        self.api.ask("wait_ready", timeout=timeout)
        self.wait_present(*self.hosts, timeout=timeout)
        for node in self.nodes.values():
            node.ask("wait_ready", timeout=timeout)

    def wait_present(self, *names: str, timeout: float = 20.0) -> None:
        """Wait until these Nodes are there, and no others."""
        until(lambda: self.present() == set(names), f"the relay to have the Nodes {names}", timeout)
