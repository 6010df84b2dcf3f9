"""What a Node's application has in its hands of one WebSocket, and when that may be let go. No I/O.

Theory of operation
===================

=========  ==================================================================  =========================================
state      meaning                                                             goes on
=========  ==================================================================  =========================================
HELD       its opening handshake waits for the application                     accepted: HERE. Answered otherwise, or
                                                                               this Node leaves: GONE
HERE       messages come, the end as the last of them                          This Node leaves, and nothing is in hand:
                                                                               GONE, else LEAVING
LEAVING    this Node leaves, and the application works on a message            that is handled, or its handler ended:
                                                                               GONE. The WebSocket ended: HERE
GONE       nothing of it is told any more
=========  ==================================================================  =========================================

A message is *given* when the application has received it, and *handled* when it asks for the next one, or its handler
returns. Nothing is in hand where all that was given is handled. The end is not given: it is handled with the message
before it.
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
        ended: The last that came was the end.
    """

    __slots__ = ("_seen", "came", "ended", "given", "handled", "place")

    def __init__(self, done: int, place: Place) -> None:
        self.place = place
        self.ended = False
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

    def end(self, number: int) -> bool:
        """The end has come. Returns whether it is the next."""
        if not self.arrive(number, False):
            return False
        self.ended = True
        if self.place is Place.LEAVING:
            self.place = Place.HERE
        return True

    @property
    def is_done(self) -> bool:
        """It has ended, and all that came before that is handled."""
        return self.ended and self.handled >= self.came - 1

    def give(self) -> bool:
        """The application is given the next one. Returns whether it may have been given it elsewhere."""
        self.given = min(self.given + 1, self.came - self.ended)
        return self.given <= self._seen

    def handle(self, number: int) -> bool:
        """Messages up to *number* are handled. Returns whether that is news."""
        if self.ended and number >= self.came - 1:
            number = self.came
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
