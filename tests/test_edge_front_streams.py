"""Which pieces of a streamed body the embedded front end hands on, and when: as Mongrel2 was seen to do it."""

from __future__ import annotations

from greentx.edge.front.streams import BodyStream, Piece


def drain(stream: BodyStream) -> list[Piece]:
    """What may be handed on now."""
    pieces = []
    while (piece := stream.next()) is not None:
        pieces.append(piece)
    return pieces


def test_what_came_with_the_head_needs_no_credits():
    """Nothing else goes without."""
    stream = BodyStream(10)
    stream.add(b"abcd")
    assert stream.first(3) == b"abc"
    assert not drain(stream)
    assert stream.waiting


def test_a_body_with_a_length_goes_as_far_as_it_is_granted():
    """The piece that makes it whole says so."""
    stream = BodyStream(10)
    assert stream.first(100) == b""
    assert not stream.waiting
    stream.credits += 3
    assert not drain(stream)
    stream.add(b"abcde")
    assert drain(stream) == [Piece(0, b"abc", False)]
    assert stream.waiting
    stream.credits += 4
    assert drain(stream) == [Piece(3, b"de", False)]
    assert (stream.credits, stream.waiting) == (2, False)
    stream.add(b"fghij")
    assert drain(stream) == [Piece(5, b"fg", False)]
    stream.credits += 100
    assert drain(stream) == [Piece(7, b"hij", True)]
    assert stream.complete
    assert not stream.waiting
    assert not drain(stream)


def test_a_chunked_body_goes_as_it_came_and_its_end_is_a_piece_of_its_own():
    """Credits get below 0 by what came; the end needs some, too."""
    stream = BodyStream(None)
    assert stream.first(100) == b""
    stream.add(b"hello")
    stream.add(b" world")
    stream.end()
    assert stream.waiting
    stream.credits += 2
    assert drain(stream) == [Piece(0, b"hello", False)]
    stream.credits += 3
    assert (stream.credits, drain(stream)) == (0, [])
    stream.credits += 1
    assert drain(stream) == [Piece(5, b" world", False)]
    assert (stream.credits, stream.waiting) == (-5, True)
    stream.credits += 6
    assert drain(stream) == [Piece(11, b"", True)]
    assert stream.complete
    assert not stream.waiting


def test_an_empty_chunked_body_is_two_messages():
    """One with the head, and its end."""
    stream = BodyStream(None)
    stream.end()
    assert stream.first(100) == b""
    stream.credits += 1
    assert drain(stream) == [Piece(0, b"", True)]
