"""Routes of the embedded front end: each row was probed on the real Mongrel2, but for those that say otherwise."""

from __future__ import annotations

import pytest

from greentx.edge.front.routes import Routes
from greentx.errors import LocalProtocolError

ROUTES = ["/", "/two/", "/pat/([a-z]+).x", "/page", "*", "@chat", "/a/(\\d+)", "/d/([^a]+)/e", "/c/(.-)x", "/e/(\\D+)$"]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/any/thing", "/"),
        ("/two/", "/two/"),
        ("/two", "/two/"),
        ("/two/x", "/two/"),
        ("/twox", "/"),
        ("/pat/abc.xyz", "/pat/([a-z]+).x"),
        ("/pat/ABC.x", None),  # no shorter route is tried
        ("/pages", "/page"),
        ("/pag", "/"),  # Mongrel2: "/page", of which it is the beginning
        ("*", "*"),
        ("@chatroom", "@chat"),
        ("@cha", None),
        ("/a/12", "/a/(\\d+)"),
        ("/a/x", None),
        ("/d/b/e", "/d/([^a]+)/e"),
        ("/d/a/e", None),
        ("/c/1x2", "/c/(.-)x"),
        ("/c/1", None),
        ("/e/ab", "/e/(\\D+)$"),
        ("/e/ab1", None),
    ],
)
def test_a_path_leads_where_its_longest_prefix_says(path, route):
    """A pattern has the last word, and a slash at the end of a route may be missing."""
    found = Routes({one: one.upper() for one in ROUTES}).match(path.encode())
    assert found == (None if route is None else (route.encode(), route.upper()))


@pytest.mark.parametrize("routes", [["/é"], [""], ["/a([a-z"], ["/a(\\j)"], ["/a(b"], ["/a(b)", "/a(c)"]])
def test_a_route_that_cannot_be_read_is_refused(routes):
    """The message names it."""
    with pytest.raises(LocalProtocolError, match="route"):
        Routes(dict.fromkeys(routes, 1))
