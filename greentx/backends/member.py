"""One process's share in a handler entry that several processes pull from.

Theory of operation
===================

==========  ============================================================================  =========================
Stage       What is known                                                                 Who pings, who judges
==========  ============================================================================  =========================
AWAY        Redis or the server is not there, or this process is about to end             each pings all that it
                                                                                          knows, nobody judges
ASKING      both are there; the name of the server's life is being found out              as AWAY
            (:mod:`greentx.backends.naming`)
LOADING     the life has a name; what Redis has of it is being read                       as AWAY
JOINED      all that others let in, and what they tell of it from now on                  the leader
                                                                                          (:mod:`.watch`)
==========  ============================================================================  =========================

A process whose server went leaves the life, and begins anew with whatever server comes. So a Mongrel2 that restarts is
a new life for all, and where only the link of one process broke, the others go on with what it owned.
"""

from __future__ import annotations

import json
import logging
from enum import Enum
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..handler.sharing import Proofs, SharedEntry
from ..protocol.websocket.registry import Sid
from .changes import Changes
from .mirror import Mirror
from .naming import Naming
from .records import Records, process_name, text_of
from .setting import Setting
from .watch import Watch

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["MAX_PONGS", "Member", "Stage"]

log = logging.getLogger("greentx.redis")

#: Pongs that wait until the leader asks.
MAX_PONGS = 4096

# What is said last in a life.
_LEAVING = ("bye", "lost", "moved")


class Stage(Enum):
    """See the module."""

    AWAY = "AWAY"
    ASKING = "ASKING"
    LOADING = "LOADING"
    JOINED = "JOINED"


class Member(SharedEntry):
    """See the module, and :class:`greentx.backends.share.Share` for most methods.

    Args:
        setting: Of the process.
        connection: The connection set.

    Attributes:
        stage: As above.
        channel: What is to be subscribed to for it.
        changes: What happens to the registry here.
        watch: Who pings.
    """

    def __init__(self, setting: Setting, connection: Connection) -> None:
        self.stage = Stage.AWAY
        self.channel = f"{setting.prefix}:{connection.sender}"
        self._setting = setting
        self._connection = connection
        self.changes = Changes(setting, connection, self.channel)
        self._mirror = Mirror(setting, connection, self.changes)
        self.watch = Watch(setting, connection, self._mirror.owners, self.changes.tell)
        self._naming = Naming(setting, connection, self.changes, self._join)
        # For the leader.
        self._pongs: dict[Sid, None] = {}
        self._echoes: list[str] = []
        # Of the present life, also while Redis is away.
        self._name_of_life = ""
        self._beat_at = 0.0
        connection.sessions.elsewhere.begin(
            note=self._note,
            awaits_news=lambda: self.stage is Stage.JOINED,
            others_go_on=lambda: self.stage is Stage.JOINED and bool(self.watch.members),
            leave=self.leave,
        )

    # -- for the pinger -----------------------------------------------------------------------------------------------

    @property
    def pings(self) -> bool:
        """See :class:`greentx.handler.sharing.SharedEntry`, as for the next two."""
        return self.stage is not Stage.JOINED or self.watch.leads

    @property
    def judges(self) -> bool:
        return self.stage is Stage.JOINED and self.watch.judges

    @property
    def proofs(self) -> Proofs:
        if self.stage is Stage.JOINED and self.watch.leads:
            return self.watch.census
        return self._connection.link.writer.receipts

    # -- which life ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Redis or the server came."""
        link = self._connection.link
        if not (self._setting.redis.up and link.subscribed):
            return
        if self._name_of_life and self.changes.life is link.life:
            # The same life, whatever Redis knows of it by now.
            self._join(self._name_of_life)
        else:
            self.stage = Stage.ASKING
            self.changes.life = link.life
            self._naming.begin()

    def _join(self, life: str) -> None:
        if self.changes.records is not None:
            self._say_last("moved")
        self._naming.stop()
        self.stage = Stage.LOADING
        self._name_of_life = life
        self.changes.life = self._connection.link.life
        self.changes.records = records = self._setting.records(self._connection.sender, life)
        self.watch.begin(records)
        # First what it owns, then that it is there: who finds it there has found all of that.
        self._beat_at = inf
        self.changes.say_all(self._mirror.owned(), partial(self._load, records))

    def _load(self, records: Records) -> None:
        self._beat(records)
        self._mirror.load(records, partial(self._loaded, records))

    def _loaded(self, records: Records, names: set[str]) -> None:
        if self.changes.records is not records or self.stage is not Stage.LOADING:
            return
        self.stage = Stage.JOINED
        others = names - {self._setting.name}
        log.info("%s: joined %d other processes in life %s", self._connection.sender, len(others), records.life)
        for name in others:
            self.watch.heard(name)
        self.changes.tell_ends()

    def down(self) -> None:
        """Redis has gone; what is known stays."""
        self.stage = Stage.AWAY
        self._naming.stop()
        self.watch.stop()
        self._mirror.stop()
        self.changes.pause()
        self._pongs.clear()
        self._echoes.clear()

    def lost(self) -> None:
        """The server has gone."""
        self._leave_life("lost")
        self._setting.name = process_name()

    def leave(self) -> None:
        """This process ends; the others go on with what it owned."""
        if self.stage is Stage.JOINED:
            self._report()
        self._leave_life("bye")

    def _leave_life(self, word: str) -> None:
        self._say_last(word)
        self.down()
        self.changes.end()
        self._name_of_life = ""

    def _say_last(self, word: str) -> None:
        records = self.changes.records
        if records is not None:
            self.watch.release()
            self.changes.flush()
            self.changes.publish(records.life, [[word]])
            self._setting.redis.send(*records.leave())

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ask again, say that this process is there, and have the leader's work done."""
        self._naming.tick(now)
        records = self.changes.records
        if records is None:
            return
        if now >= self._beat_at:
            self._beat(records)
        if self.stage is Stage.JOINED:
            self.watch.tick(now)

    def _beat(self, records: Records) -> None:
        self._beat_at = monotonic() + self._setting.times.beat
        self._setting.redis.send(*records.here(), then=partial(self._was_here, records))
        for command in records.beat():
            self._setting.redis.send(*command)
        self.changes.tell(["here"])

    def _was_here(self, records: Records, reply: Any) -> None:
        # Somebody has removed everything, or held this process for dead.
        if reply == 1 and self.changes.records is records and self.stage is Stage.JOINED:
            self.changes.say_all(self._mirror.owned(), lambda: None)

    # -- what is published --------------------------------------------------------------------------------------------

    def message(self, channel: str, data: bytes) -> None:
        """Something was published on one of the channels."""
        records = self.changes.records
        if channel == self.channel:
            message = json.loads(data)
            name, life, ops = message["n"], message["l"], message["o"]
            is_mine = records is not None and life == records.life
            if is_mine and name != self._setting.name and ops[-1][0] not in _LEAVING:
                self.watch.heard(name)
            for op in ops:
                if not self._heard_of_lives(name, life, *op) and is_mine:
                    self._heard_of_ours(name, *op)
        elif records is not None and channel == records.leader_channel:
            message = json.loads(data)
            self.watch.reported(message["n"], message["p"], message["e"])

    def _heard_of_lives(self, name: str, life: str, word: str, *details: Any) -> bool:
        """Act on what is said to all on this channel, whichever life they are in."""
        is_other = name != self._setting.name
        if word == "ask":
            if is_other:
                self._naming.asked(name, *details)
        elif word == "lead":
            if is_other and life == self._name_of_life:
                self._led(*details)
            elif is_other:
                self._naming.asked(name, details[0], details[1], life)
        elif word == "saw":
            if details[0] == self._setting.name and self.stage is not Stage.AWAY:
                self._naming.seen_by(life, details[1])
        else:
            return False
        return True

    def _heard_of_ours(self, name: str, word: str, *details: Any) -> None:
        """Act on what is said to those in this life, by this process, too."""
        if word == "open":
            self._mirror.opened(name, details[0], details[1], details[2], [])
        elif word == "own":
            self._mirror.listed(name, *details)
        elif word == "take":
            self.watch.members.pop(details[0], None)
            if self._mirror.taken(details[0], name):
                self.changes.say_all(self._mirror.owned(), lambda: None)
        elif name == self._setting.name:
            pass
        elif word == "end":
            self._mirror.ended(*details)
        elif word in ("join", "leave"):
            self._mirror.joined(*details, joins=word == "join")
        elif word in _LEAVING:
            self.watch.gone(name, told_all=word == "bye", stays=word == "moved")

    # -- echoes and pongs ---------------------------------------------------------------------------------------------

    def notice(self, conn_id: str) -> None:
        """The server gave notice of a number that nobody has."""
        if self.stage is Stage.JOINED and self.watch.echo(conn_id):
            self._echoes.append(conn_id)
            self._setting.redis.wake()
        elif not self.watch.leads or not self.watch.census.is_ours(conn_id):
            self._naming.echo(conn_id)

    def _led(self, first: int, count: int) -> None:
        """Another process leads, and has echoes made with these numbers."""
        self.watch.numbers = range(first, first + count)
        # Those that came before this news.
        self._echoes += self._naming.take(self.watch.numbers)
        self._setting.redis.wake()

    def _note(self, sid: Sid) -> None:
        if self.stage is Stage.JOINED and not self.watch.leads:
            self._pongs[sid] = None
            if len(self._pongs) >= MAX_PONGS:
                self._setting.redis.wake()

    def collect(self) -> None:
        """A batch is about to be sent."""
        self.changes.flush()
        if self._echoes or len(self._pongs) >= MAX_PONGS:
            self._report()

    def _report(self) -> None:
        """Tell the leader what came here, in the order in which it came: first the pongs."""
        records = self.changes.records
        if records is not None:
            pongs = [text_of(sid) for sid in self._pongs]
            message = json.dumps({"n": self._setting.name, "p": pongs, "e": self._echoes})
            self._setting.redis.send("PUBLISH", records.leader_channel, message)
        self._pongs.clear()
        self._echoes.clear()

    def __repr__(self) -> str:
        life = self._name_of_life or "of no name"
        return f"<Member {self._connection.sender}: {self.stage.value}, life {life}, {self.watch!r}>"
