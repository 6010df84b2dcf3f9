"""Turns that write an access log, of connections that have one."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from ...protocol.http1_parser import ResponseTracker
from .access_log import AccessLog
from .events import Head
from .turns import Turns

__all__ = ["LoggedTurns"]


@dataclass(slots=True)
class _Answer:
    """One that is due: to what, since when, and what has been written of it."""

    head: Head
    began: float
    tracker: ResponseTracker
    size: int = 0


class LoggedTurns(Turns):
    """Has a line written for each answer that is whole, and at the end for those that are not.

    Args:
        access_log: Where.
        client: Its address.
    """

    __slots__ = ("_access_log", "_answers", "_client")

    def __init__(self, access_log: AccessLog, client: str) -> None:
        super().__init__()
        self._access_log = access_log
        self._client = client
        self._answers: deque[_Answer] = deque()

    def asked(self, head: Head) -> None:
        super().asked(head)
        self.upgraded(head)

    def upgraded(self, head: Head) -> Turns:
        self._answers.append(_Answer(head, time.monotonic(), ResponseTracker(head.method.decode())))
        return self

    def withdraw(self) -> bool:
        if not super().withdraw():
            return False
        self._answers.pop()
        return True

    def refused(self, head: Head | None, status: int, size: int) -> None:
        self._access_log.add(self._client, head, status, size, None)

    def wrote(self, data: bytes) -> bool:
        rest, answers = data, self._answers
        while rest and answers:
            answer = answers[0]
            is_whole = answer.tracker.feed(rest)
            excess = answer.tracker.excess if is_whole else 0
            answer.size += len(rest) - excess
            if not is_whole:
                break
            self._say(answers.popleft())
            rest = rest[len(rest) - excess :]
        return super().wrote(data)

    def closed(self) -> None:
        while self._answers:
            self._say(self._answers.popleft())

    def _say(self, answer: _Answer) -> None:
        seconds = time.monotonic() - answer.began
        self._access_log.add(self._client, answer.head, answer.tracker.status, answer.size, seconds)
