"""What a Node's application has in its hands of one WebSocket, and when that may be let go. No I/O.

Theory of operation
===================

=========  ==================================================================  =========================================
state      meaning                                                             goes on
=========  ==================================================================  =========================================
HELD       its opening handshake waits for the application                     accepted: HERE. Answered otherwise, or
                                                                               this Node leaves: GONE
HERE       messages come                                                       it ended: GONE. This Node leaves, and
                                                                               nothing is in hand: GONE, else LEAVING
LEAVING    this Node leaves, and the application works on a message            that is handled, its handler ended, or
                                                                               the WebSocket did: GONE
GONE       nothing of it is told any more
=========  ==================================================================  =========================================

A message is *given* when the application has received it, and *handled* when it asks for the next one, or its handler
returns. Nothing is in hand where all that was given is handled.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Hand", "Place"]


class Place(Enum):
    """Where a WebSocket is, as its Node knows it."""

    HELD = "HELD"
    HERE = "HERE"
    LEAVING = "LEAVING"
    GONE = "GONE"


class Hand:
    """How far the messages of one WebSocket have got at this Node.

    Args:
        done: They were handled up to this one elsewhere.
        place: How it begins.

    Attributes:
        place: Where it is.
        came, given, handled: The numbers of the last messages that did, were.
    """

    __slots__ = ("_seen", "came", "given", "handled", "place")

    def __init__(self, done: int, place: Place) -> None:
        self.place = place
        self.came = self.given = self.handled = done
        # Up to here they may have been given to an application elsewhere.
        self._seen = done

    def arrive(self, number: int, redelivered: bool) -> bool:
        """A message has come. Returns whether it is the next one; others are a mistake of the sender."""
        if number != self.came + 1:
            return False
        self.came = number
        if redelivered:
            self._seen = number
        return True

    def give(self) -> bool:
        """The application is given the next one. Returns whether it may have been given it elsewhere."""
        self.given = min(self.given + 1, self.came)
        return self.given <= self._seen

    def handle(self, number: int) -> bool:
        """Messages up to *number* are handled. Returns whether that is news."""
        if number <= self.handled:
            return False
        self.handled = number
        self.given = max(self.given, number)
        return True

    def leave(self) -> bool:
        """This Node leaves. Returns whether the WebSocket is let go now."""
        if self.place is Place.HERE and self.handled < self.given:
            self.place = Place.LEAVING
        return self.may_go()

    def may_go(self) -> bool:
        """Return whether the WebSocket is to be let go, now that something was handled."""
        return self.place is Place.HELD or (self.place is not Place.GONE and self.handled >= self.given)

    def __repr__(self) -> str:
        return f"<Hand {self.place.value}: {self.handled} handled, {self.given} given, {self.came} came>"
