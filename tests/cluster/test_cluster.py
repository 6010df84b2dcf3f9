"""What holds for two Mongrel2, an API and four Nodes, each on a host of its own, when links and hosts fail.

All browsers count what they send and what they are answered, each request and message by its number.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import gevent
import pytest
from crowds import Crowd, accounted, all_right, heard_out
from hosts import cluster, until
from links import WITHOUT
from sites import Front, PlainSite, RelaySite

pytestmark = [pytest.mark.mongrel2, pytest.mark.timeout(60)]

NODES = ("node1", "node2", "node3", "node4")


@pytest.fixture
def plain_site(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainSite]:
    """On hosts that are addresses, so that these are tested where the machine allows namespaces, too."""
    monkeypatch.setenv(WITHOUT, "1")
    with cluster() as one:
        yield PlainSite(one)


@pytest.fixture(scope="module")
def whole_site() -> Iterator[RelaySite]:
    """One for all tests, as it takes seconds to start."""
    with cluster() as one:
        yield RelaySite(one)


@pytest.fixture
def site(whole_site: RelaySite) -> RelaySite:
    """Everything is there and runs."""
    whole_site.wait_whole()
    return whole_site


# -- without a relay ---------------------------------------------------------------------------------------------------


def test_a_cut_link_delays_its_own_browsers_and_loses_nothing(plain_site: PlainSite) -> None:
    """No answer and no WebSocket is lost by seconds in which nothing gets through; the other server is served."""
    site = plain_site
    cut, whole = site.fronts
    there, here = site.crowds(cut), site.crowds(whole)
    for crowd in (*there, *here):
        crowd.progress(10)
    with site.cluster.cut_off(cut.host, site.back):
        until(site.why, "STATUS to name the server that is cut off")
        assert [cut.entry[2] in why for why in site.why()] == [True]
        for crowd in here:
            crowd.progress(20)
    for crowd in there:
        crowd.progress(20)
    until(lambda: not site.why(), "STATUS to say that all is well")
    all_right([crowd.finish() for crowd in (*there, *here)])


# -- with a relay ------------------------------------------------------------------------------------------------------


class Load:
    """Browsers of all kinds at both Mongrel2.

    Attributes:
        gets: Callers; half of them ask for what takes a moment, so that some are always in the hands of a Node.
        speakers: WebSockets, on which messages are always under way.
    """

    def __init__(self, site: RelaySite, *fronts: Front, patience: float = 25.0) -> None:
        self.gets: list[Crowd] = []
        self.speakers: list[Crowd] = []
        for front in fronts or site.fronts:
            self.gets.append(site.crowd("callers", front, 3, patience=patience))
            self.gets.append(site.crowd("callers", front, 6, patience=patience, query="&wait=0.3"))
            self.speakers.append(site.crowd("speakers", front, 6, pause=0.05, patience=15.0))
        self.progress(6)

    def progress(self, more: int) -> None:
        """Wait until each crowd has had so many right answers more."""
        for crowd in (*self.gets, *self.speakers):
            crowd.progress(more, timeout=30)

    def all_right(self) -> None:
        """End them; fail unless each request was answered right, and each message heard once."""
        all_right([crowd.finish() for crowd in self.gets])
        for crowd in self.speakers:
            heard_out(crowd.finish())

    def right_but_for_what_one_node_had(self) -> None:
        """End them; fail unless all went well that was not in the hands of one Node, which could not be reached.

        It may have answered in that moment, which nobody can know: so the connection is closed, never silent, and
        never answered twice. A message of a WebSocket that it had is given to another Node, and may be heard twice.
        """
        for crowd in self.gets:
            tally = crowd.finish()
            accounted(tally)
            assert all(one.why.startswith("closed") for one in tally.lost), tally.lost
            assert len(tally.lost) <= crowd.number, f"{tally}: {tally.lost[:3]}"
        for crowd in self.speakers:
            heard_out(crowd.finish(), doubled=crowd.number)


def test_all_that_is_sent_is_answered_by_four_nodes(site: RelaySite) -> None:
    """GET, POST and WebSockets at both Mongrel2; each Node has a part of it."""
    load = Load(site)
    posts = [site.crowd("callers", front, 2, upload=2000) for front in site.fronts]
    for crowd in posts:
        crowd.progress(50)
    load.progress(20)
    load.all_right()
    all_right([crowd.finish() for crowd in posts])
    for node in site.nodes.values():
        assert sum(one["replies"] for one in node.ask("status")["connections"]) > 20


def test_a_node_that_is_cut_off_answers_nobody_late(site: RelaySite) -> None:
    """Its WebSockets go on at others; it comes back as soon as it can be reached, and nothing comes out of it late."""
    load = Load(site)
    posts = [site.crowd("callers", front, 2, upload=2000) for front in site.fronts]
    for crowd in posts:
        crowd.progress(10)
    with site.cluster.cut_off(site.hosts["node1"], site.back):
        began = time.monotonic()
        site.wait_present(*NODES[1:])
        load.progress(20)
        gevent.sleep(max(0.0, began + 5 - time.monotonic()))  # in which nothing may come out of it
    site.wait_present(*NODES)
    load.progress(6)
    load.right_but_for_what_one_node_had()
    for crowd in posts:
        tally = crowd.finish()
        accounted(tally, refused=(502,))
        assert len(tally.lost) + tally.refused[502] <= 4


def test_a_node_that_is_stopped_delays_nobody_for_long(site: RelaySite) -> None:
    """SIGSTOP: its WebSockets go on at others, and what it says when it continues reaches nobody."""
    load = Load(site)
    site.nodes["node2"].signal(signal.SIGSTOP)
    try:
        site.wait_present("node1", "node3", "node4")
        load.progress(20)
    finally:
        site.nodes["node2"].signal(signal.SIGCONT)
    site.wait_present(*NODES)
    load.progress(6)
    load.right_but_for_what_one_node_had()


def test_a_node_whose_host_dies_is_found_out(site: RelaySite) -> None:
    """It says nothing, and its connections do not end: its WebSockets go on at others."""
    load = Load(site)
    site.hosts["node3"].kill()
    site.wait_present("node1", "node2", "node4")
    load.progress(20)
    site.hosts["node3"].start()
    site.run_node("node3").wait_ready()
    site.wait_present(*NODES)
    load.progress(6)
    load.right_but_for_what_one_node_had()


def test_a_node_that_cannot_reach_one_mongrel2_works_for_the_other(site: RelaySite) -> None:
    """Its answers wait while the link is cut, and arrive. WebSockets do not notice, as they live in the API."""
    cut, whole = site.fronts
    here, there = Load(site, whole), Load(site, cut)
    with site.cluster.cut_off(cut.host, site.hosts["node4"]):
        here.progress(20)
        for crowd in there.speakers:
            crowd.progress(100)
    there.progress(20)
    here.all_right()
    for crowd in there.speakers:
        heard_out(crowd.finish())
    for crowd in there.gets:
        tally = crowd.finish()
        accounted(tally, refused=(502,))
        assert not tally.lost


def test_the_api_is_killed_and_its_nodes_come_back(site: RelaySite) -> None:
    """What it had is lost with it, as with a Transceiver; WebSockets are told to connect again."""
    load = Load(site, patience=8.0)
    site.api.kill()
    site.run_api().wait_ready()
    site.wait_whole()
    load.progress(20)
    for crowd in load.gets:
        tally = crowd.finish()
        accounted(tally, refused=(502,))
        assert len(tally.lost) <= crowd.number
    for crowd in load.speakers:
        spoken = crowd.finish()
        heard_out(spoken, ended=(1006, 1012), lost=True)
        assert sum(spoken.ended.values()) == crowd.number


def test_a_mongrel2_s_host_dies_and_the_other_one_s_browsers_do_not_notice(site: RelaySite) -> None:
    """Nobody says goodbye, and nothing is sent there: that it is back is found out, and it is served."""
    dying, staying = site.fronts
    here = Load(site, staying)
    there = site.crowd("callers", dying, patience=5.0)
    there.progress(20)
    dying.host.kill()
    here.progress(20)
    dying.host.start()
    dying.run().wait_ready()
    there.progress(20, timeout=40)
    here.progress(20)
    here.all_right()
    accounted(there.finish(), refused=(502, 503))
