"""Who may connect to the embedded front end."""

from __future__ import annotations

import pytest

from greentx.edge.front.admission import Admission


def test_there_are_so_many_in_all():
    """One that goes makes room."""
    admission = Admission(2)
    assert admission.enter("a")
    assert admission.enter("a")
    assert not admission.enter("b")
    admission.leave("a")
    assert admission.enter("b")
    assert len(admission) == 2


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        # A client of IPv6 has as many addresses as it likes.
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        # Those of IPv4, on a socket for both, are not one network.
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        # A proxy has no bound of its own.
        (None, None, False),
    ],
)
def test_there_are_so_many_of_one_client(first, second, same):
    """Others are let in meanwhile, and it is let in again as soon as one of its own has gone."""
    admission = Admission(10, 1)
    assert admission.enter(first)
    assert admission.enter(second) is not same
    assert admission.enter("198.51.100.1")
    admission.leave(first)
    if same:
        assert admission.enter(second)
    assert len(admission) == 2
