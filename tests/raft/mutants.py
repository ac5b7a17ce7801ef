"""Cores with a bug each, of the kind that was found in Raft implementations: the simulation has to find every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvserver.raft import Config, ConfState, Entry, HardState, InitialState, Message, MessageType, RawNode, Ready, Role
from kvserver.raft.log import RaftLog
from kvserver.raft.quorum import joint_index
from kvserver.raft.tracker import Progress

MUTANTS: dict[str, Callable[[Config, InitialState], RawNode]] = {}


def mutant(name: str) -> Callable[[type[RawNode]], type[RawNode]]:
    def register(kind: type[RawNode]) -> type[RawNode]:
        MUTANTS[name] = kind
        return kind

    return register


def with_log(kind: type[RaftLog]) -> Callable[[Config, InitialState], RawNode]:
    def make(config: Config, initial: InitialState) -> RawNode:
        node = RawNode(config, initial)
        log = kind.__new__(kind)
        for base in RaftLog.__mro__:
            for slot in getattr(base, "__slots__", ()):
                setattr(log, slot, getattr(node.log, slot))
        node.log = log
        return node

    return make


@mutant("commits entries of earlier terms by counting")
class CountsOldTerms(RawNode):
    def _maybe_commit(self) -> bool:
        match = {member: progress.match for member, progress in self._progress.items()}
        index = joint_index(self.conf_state.voters, self.conf_state.voters_outgoing, match)
        if index <= self.log.commit or index > self.log.last:
            return False
        self._appends_due = True
        return self.log.commit_to(index)


@mutant("counts itself before its entries are durable")
class CountsItselfEarly(RawNode):
    def ready(self) -> Ready:
        if self.role is Role.LEADER and self.id in self._progress:
            self._progress[self.id].maybe_update(self.log.last)
            self._maybe_commit()
        return super().ready()


@mutant("does not keep its vote")
class ForgetsVote(RawNode):
    def ready(self) -> Ready:
        ready = super().ready()
        if ready.hard_state is not None:
            ready.hard_state = HardState(ready.hard_state.term, 0, ready.hard_state.commit)
        return ready


@mutant("acknowledges appends before they are durable")
class AcknowledgesEarly(RawNode):
    def _promise(self, kind: MessageType, to_id: int, **fields: object) -> None:  # type: ignore[override]
        super()._promise(kind, to_id, **fields)  # type: ignore[arg-type]
        if kind is MessageType.APPEND_RESPONSE and not self._after_persist[-1].reject:
            # Disguised as a heartbeat's answer, since an early acknowledgement as such is refused by the harness.
            message = self._after_persist.pop()
            self._messages.append(replace(message, type=MessageType.HEARTBEAT_RESPONSE, context=b""))

    def _on_heartbeat_response(self, message: Message) -> None:
        super()._on_heartbeat_response(message)
        if message.index and self.role is Role.LEADER:
            self._on_append_response(replace(message, type=MessageType.APPEND_RESPONSE))


@mutant("answers reads without confirming its leadership")
class ReadsWithoutRound(RawNode):
    def _begin_read_round(self) -> None:
        while self._read_round_is_due():
            self._reads.begin(self.log.commit, self.id)
            self._reads.acks = dict.fromkeys(self._progress, True)
            self._maybe_finish_read_round()


@mutant("answers reads before it committed an entry of its term")
class ReadsBeforeCommitInTerm(RawNode):
    def _read_round_is_due(self) -> bool:
        return bool(self._reads.waiting) and not self._reads.pending and self.role is Role.LEADER


@mutant("confirms reads by answers to an earlier round")
class ConfirmsByEarlierRound(RawNode):
    def _on_heartbeat_response(self, message: Message) -> None:
        if self._reads.pending and message.context:
            message = replace(message, context=self._reads.context)
        super()._on_heartbeat_response(message)


@mutant("makes a second membership change before the first is applied")
class IgnoresPendingChange(RawNode):
    @property
    def _pending_conf_index(self) -> int:
        return 0

    @_pending_conf_index.setter
    def _pending_conf_index(self, index: int) -> None:
        pass


@mutant("lets a membership change take effect before it is kept")
class AppliesChangeEarly(RawNode):
    def _apply_limit(self) -> int:
        return self.log.committed_limit()


@mutant("takes one majority of a joint configuration for enough")
class IgnoresOutgoing(RawNode):
    def _switch_config(self, state: ConfState) -> None:
        super()._switch_config(replace(state, voters_outgoing=(), learners_next=(), auto_leave=False))


@mutant("tells followers a commit index they do not have")
class CommitsBeyondMatch(RawNode):
    def _broadcast_heartbeat(self) -> None:
        super()._broadcast_heartbeat()
        self._messages = [
            replace(message, commit=self.log.commit) if message.type is MessageType.HEARTBEAT else message
            for message in self._messages
        ]

    def _on_heartbeat(self, message: Message) -> None:
        super()._on_heartbeat(replace(message, commit=min(message.commit, self.log.last)))


@mutant("accepts appends of an earlier term")
class AcceptsOldTerm(RawNode):
    def _answer_lower_term(self, message: Message) -> None:
        if message.type is MessageType.APPEND and self.role is Role.FOLLOWER and message.index >= self.log.commit:
            last = self.log.maybe_append(message.index, message.log_term, message.entries)
            if last is not None:
                self._promise(MessageType.APPEND_RESPONSE, message.from_id, term=message.term, index=last)


@mutant("counts a learner's acknowledgement")
class CountsLearners(RawNode):
    def _maybe_commit(self) -> bool:
        state = self.conf_state
        match = sorted(progress.match for progress in self._progress.values())
        index = match[(len(match) - 1) // 2] if not state.voters_outgoing else 0
        if index > self.log.commit and self.log.term(index) == self.term:
            self._appends_due = True
            return self.log.commit_to(index)
        return super()._maybe_commit()


class VotesForAnyLog(RaftLog):
    __slots__ = ()

    def is_up_to_date(self, index: int, term: int) -> bool:
        return True


class ComparesOnlyLength(RaftLog):
    __slots__ = ()

    def is_up_to_date(self, index: int, term: int) -> bool:
        return index >= self.last


class AlwaysTruncates(RaftLog):
    __slots__ = ()

    def maybe_append(self, index: int, term: int, entries: list[Entry]) -> int | None:
        if self.matches(index, term) and self.commit <= index < self.last:
            self.truncate(index + 1)
        return super().maybe_append(index, term, entries)


class CountsOverwritten(RaftLog):
    """What was handed out to be written counts when it is durable, even if it was overwritten in between."""

    __slots__ = ("written_to",)

    def take_unstable(self) -> list[Entry]:
        entries = super().take_unstable()
        self.written_to = self.last
        return entries

    def persisted(self) -> None:
        super().persisted()
        self.stable = self.handed_stable = min(max(getattr(self, "written_to", 0), self.stable), self.last)


class SkipsMatching(RaftLog):
    __slots__ = ()

    def matches(self, index: int, term: int) -> bool:
        return self.offset <= index <= self.last


MUTANTS["votes for a candidate whatever its log"] = with_log(VotesForAnyLog)
MUTANTS["compares logs by their length alone"] = with_log(ComparesOnlyLength)
MUTANTS["drops what follows an append, though it does not contradict it"] = with_log(AlwaysTruncates)
MUTANTS["counts a write whose entries were overwritten meanwhile"] = with_log(CountsOverwritten)
MUTANTS["appends without comparing the entry before"] = with_log(SkipsMatching)


@mutant("takes a stale refusal for a new one, so that match goes back")
class MatchGoesBack(RawNode):
    def _leaders_view(self, message: Message) -> Progress | None:
        progress = super()._leaders_view(message)
        if progress is not None and message.reject and progress.match:
            progress.match = min(progress.match, message.reject_hint)
        return progress
