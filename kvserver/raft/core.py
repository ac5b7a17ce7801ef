"""The consensus algorithm: messages and ticks in, messages out. See Ongaro and Ousterhout, "In Search of an
Understandable Consensus Algorithm" (the paper) and Ongaro's thesis; names after etcd-io/raft.

Roles, and what leads from one to another::

                 times out (pre-vote)             wins pre-vote              wins, durably voted for itself
    FOLLOWER ----------------------> PRE_CANDIDATE ----------> CANDIDATE ----------------------------> LEADER
        ^                                  |                       |                                     |
        +---- sees a leader or a higher term, loses, or (LEADER) hears no quorum, is removed ------------+

What must hold at every moment:

- ``term``, ``log.commit``, ``log.applied`` never go back; one vote a term.
- A message that makes a promise (a vote, the acknowledgement of an append) is put into ``_after_persist`` and leaves
  only when everything the promise rests on is durable. A real vote *request* too: it promises that this member has
  voted for itself and how far its log goes; a member that forgot that after a crash could be elected on the strength of
  entries it no longer has. What a leader sends leaves at once.
- A leader counts itself only up to ``log.stable``, and a candidate counts its own vote only when it is durable.
- Only entries of the current term are committed by counting (paper 5.4.2).
- A configuration takes effect when its entry is applied, not before, and one change is under way at a time.

Appends are not sent from ``step`` or ``propose``: they only note that there is something to send, and one call of
:meth:`Raft._flush_appends` per ``Ready`` sends to each member whatever its window takes. So proposals and
acknowledgements that arrive together cost one message a member.

No clock, no randomness but the injected, no set or hash order, no disk and no socket may be used here. What the
application has to do and when is ``rawnode``'s subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

from kvserver.raft._invariant import InvariantError, check
from kvserver.raft.confchange import ConfChange, apply_change, check_conf_state
from kvserver.raft.config import Config
from kvserver.raft.errors import (
    ConfChangeError,
    ConfChangePendingError,
    NotLeaderError,
    ProposalDroppedError,
    TransferringError,
    UncommittedLimitError,
)
from kvserver.raft.log import ENTRY_OVERHEAD_BYTES, RaftLog
from kvserver.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    InitialState,
    Message,
    MessageType,
    ReadState,
    Role,
    Snapshot,
)
from kvserver.raft.quorum import VoteResult, joint_index, joint_vote
from kvserver.raft.reads import ReadRounds
from kvserver.raft.tracker import Progress, ProgressState

_FORWARDED = frozenset((MessageType.PROPOSE, MessageType.READ_INDEX, MessageType.TRANSFER_LEADER))


class Raft:
    """One member's part in the algorithm. Use :class:`~kvserver.raft.rawnode.RawNode`."""

    def __init__(self, config: Config, initial: InitialState) -> None:
        hard_state = initial.hard_state
        self.config = config
        self.id = config.id
        self.log = RaftLog(initial)
        check(hard_state.term >= self.log.last_term, "the initial term is below that of the last entry")
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader_id = 0
        self.conf_state = initial.snapshot.conf_state
        check_conf_state(self.conf_state)
        self.lead_transferee = 0
        """While leading: to whom leadership is being handed over."""

        self._logger = config.logger
        self._progress: dict[int, Progress] = {}
        self._peers: list[int] = []
        self._votes: dict[int, bool] = {}
        self._reads = ReadRounds()
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._election_timeout = 0
        self._pending_conf_index = 0
        """While leading: no membership change is proposed until this index is applied."""
        self._term_start = 0
        """While leading: the index of the first entry of this term."""
        self._appends_due = False
        self._campaign_wanted = False
        """An election is to be started as soon as no membership change keeps this member from it."""
        self._campaign_forced = False
        """That election is a leader's wish."""
        self._flushed_last = 0
        """The last entry when appends were last sent."""
        self._bytes_allowed = 0
        """While leading: what ``log.bytes_total`` may reach before proposals are refused."""
        self._bytes_ceiling = -1
        """The same while proposals are accepted, else -1: the one test of the hot path."""

        self._messages: list[Message] = []
        self._after_persist: list[Message] = []
        self._read_states: list[ReadState] = []
        self._handlers: dict[MessageType, Callable[[Message], None]] = {
            MessageType.APPEND: self._on_append,
            MessageType.APPEND_RESPONSE: self._on_append_response,
            MessageType.HEARTBEAT: self._on_heartbeat,
            MessageType.HEARTBEAT_RESPONSE: self._on_heartbeat_response,
            MessageType.VOTE: self._on_vote,
            MessageType.VOTE_RESPONSE: self._on_vote_response,
            MessageType.PRE_VOTE: self._on_vote,
            MessageType.PRE_VOTE_RESPONSE: self._on_vote_response,
            MessageType.SNAPSHOT: self._on_snapshot,
            MessageType.PROPOSE: self._on_propose,
            MessageType.READ_INDEX: self._on_read_index,
            MessageType.READ_INDEX_RESPONSE: self._on_read_index_response,
            MessageType.TRANSFER_LEADER: self._on_transfer_leader,
            MessageType.TIMEOUT_NOW: self._on_timeout_now,
        }
        self._rebuild_progress()
        self._reset(self.term)

    # -- what is asked from outside -------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.role is Role.LEADER

    @property
    def commit_index(self) -> int:
        """The highest index known to be committed."""
        return self.log.commit

    @property
    def applied_index(self) -> int:
        """The highest index reported applied."""
        return self.log.applied

    @property
    def has_committed_in_term(self) -> bool:
        """Whether this leader has committed an entry of its term, so that its commit index is current (thesis 6.4)."""
        return self.role is Role.LEADER and self.log.commit >= self._term_start

    def first_index(self) -> int:
        """Answer the index of the first entry that is not compacted away."""
        return self.log.first

    def last_index(self) -> int:
        """Answer the index of the last entry."""
        return self.log.last

    def reads_are_local(self) -> bool:
        """Tell whether any read of the applied state is linearizable here and now: the only voter, leading, current."""
        return self.has_committed_in_term and self._is_only_voter()

    def can_read_index(self) -> bool:
        """Tell whether :meth:`read_index` would start anything: a leader is known."""
        return self.leader_id != 0

    # -- proposals ------------------------------------------------------------------------------------------------

    def propose(self, data: bytes) -> int:
        """Append an entry to the log, if this member leads.

        Hot: one call a client write (benchmark ``put``); nothing is sent or written before the next ``ready``.

        Returns:
            The entry's index; 0 if the proposal was forwarded to the leader and its fate stays unknown.

        Raises:
            NotLeaderError: another member leads, or none (``leader_id``), and proposals are not forwarded.
            ProposalDroppedError: it cannot be taken now; its subclasses tell why.
        """
        log = self.log
        total = log.bytes_total + len(data)
        if total > self._bytes_ceiling:
            return self._propose_slowly([data])
        log.bytes_total = total
        entries = log.entries
        index = log.offset + len(entries) + 1
        entries.append(Entry(self.term, index, 0, data))
        return index

    def propose_batch(self, datas: Sequence[bytes]) -> int:
        """Append one entry for each of ``datas``, all or none.

        Returns:
            The index of the first; the others follow it. 0 if forwarded.

        Raises:
            NotLeaderError, ProposalDroppedError: as :meth:`propose` does.
        """
        if not datas:
            raise ValueError("an empty batch has no index")
        log = self.log
        total = log.bytes_total + sum(map(len, datas))
        if total > self._bytes_ceiling:
            return self._propose_slowly(datas)
        log.bytes_total = total
        index = log.last + 1
        log.entries.extend(map(Entry, repeat(self.term), range(index, index + len(datas)), repeat(0), datas))
        return index

    def propose_conf_change(self, change: ConfChange) -> int:
        """Append a membership change to the log, if this member leads.

        Returns:
            The entry's index; 0 if it was forwarded.

        Raises:
            ConfChangeError: it is not possible from the present configuration.
            ConfChangePendingError: an earlier change is not applied yet.
            NotLeaderError, ProposalDroppedError: as :meth:`propose` does.
        """
        entry = Entry(0, 0, EntryType.CONF_CHANGE, change.encode())
        if self.role is not Role.LEADER:
            return self._forward([entry])
        self._check_accepting()
        if self._pending_conf_index > self.log.applied:
            raise ConfChangePendingError(f"the membership change at {self._pending_conf_index} is not applied yet")
        apply_change(self.conf_state, change)
        self._append_own([entry])
        self._pending_conf_index = self.log.last
        return self.log.last

    def _propose_slowly(self, datas: Sequence[bytes]) -> int:
        """Find out why a proposal does not pass the hot path's test."""
        if self.role is not Role.LEADER:
            return self._forward([Entry(0, 0, EntryType.NORMAL, data) for data in datas])
        self._check_accepting()
        log = self.log
        # A proposal larger than the limit passes when nothing else is under way: the limit is to bound a heap of them.
        if log.last > log.commit:
            uncommitted = log.bytes_total - self._bytes_allowed + self.config.uncommitted_bytes_max
            raise UncommittedLimitError(f"{uncommitted} bytes are proposed and not yet committed")
        index = log.last + 1
        self._append_own([Entry(0, 0, EntryType.NORMAL, data) for data in datas])
        return index

    def _check_accepting(self) -> None:
        if self.lead_transferee:
            raise TransferringError(f"leadership is being handed over to {self.lead_transferee:x}")
        if self.id not in self._progress:
            raise ProposalDroppedError("this member was removed")

    def _forward(self, entries: list[Entry]) -> int:
        if not self.config.forward_proposals or not self.leader_id:
            raise NotLeaderError(self.leader_id)
        self._messages.append(Message(MessageType.PROPOSE, self.leader_id, self.id, entries=entries))
        return 0

    def _append_own(self, entries: Sequence[Entry]) -> None:
        """Append entries as the leader, giving them their places."""
        last = self.log.last
        term = self.term
        self.log.append([Entry(term, last + 1 + at, entry.type, entry.data) for at, entry in enumerate(entries)])

    def _on_propose(self, message: Message) -> None:
        # What was forwarded once is not forwarded again: two members that take each other for the leader would play on.
        if self.role is not Role.LEADER:
            self._logger.debug("%x dropped a proposal forwarded by %x: not the leader", self.id, message.from_id)
            return
        try:
            for entry in message.entries:
                if entry.type == EntryType.CONF_CHANGE:
                    self.propose_conf_change(ConfChange.decode(entry.data))
                else:
                    self.propose(entry.data)
        except (ProposalDroppedError, ConfChangeError) as error:
            self._logger.debug("%x dropped a proposal forwarded by %x: %s", self.id, message.from_id, error)

    # -- messages -------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message of another member."""
        if message.to_id != self.id:
            self._logger.warning("%x ignored a message to %x", self.id, message.to_id)
            return
        term = message.term
        if term == 0:
            if message.type not in _FORWARDED:
                self._logger.warning("%x ignored a %s without a term", self.id, message.type.name)
                return
        elif term > self.term:
            if not self._take_higher_term(message):
                return
        elif term < self.term:
            self._answer_lower_term(message)
            return
        self._handlers[message.type](message)

    def _take_higher_term(self, message: Message) -> bool:
        """Go to a higher term if the message calls for it; tell whether the message is to be handled."""
        kind = message.type
        if kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            if (
                self.config.check_quorum
                and not message.force
                and self.leader_id
                and self._election_elapsed < self.config.election_ticks
            ):
                # Heard from a leader within the shortest election timeout: do not disturb it (thesis 4.2.3).
                self._logger.debug("%x ignored a %s of %x: it has a leader", self.id, kind.name, message.from_id)
                return False
            if kind is MessageType.PRE_VOTE:
                return True  # answered without taking the term, which nobody has reached yet
            self._become_follower(message.term, 0)
        elif kind is MessageType.PRE_VOTE_RESPONSE and not message.reject:
            return True  # granted for the term we asked for; it is taken when the pre-vote is won
        elif kind in (MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT):
            self._become_follower(message.term, message.from_id)
        else:
            self._become_follower(message.term, 0)
        return True

    def _answer_lower_term(self, message: Message) -> None:
        """Answer a message of an earlier term, where silence would leave its sender stuck."""
        kind = message.type
        if kind is MessageType.APPEND or kind is MessageType.HEARTBEAT:
            # An old leader learns that it is one. Or this member has raised its term while it was cut off, and its own
            # requests for votes are ignored because the others have a leader: that steps down now, which ends this.
            self._promise(MessageType.APPEND_RESPONSE, message.from_id)
        elif kind is MessageType.PRE_VOTE:
            self._refuse_vote(MessageType.PRE_VOTE_RESPONSE, message.from_id)
        elif kind is MessageType.VOTE:
            self._refuse_vote(MessageType.VOTE_RESPONSE, message.from_id)

    def _promise(
        self,
        kind: MessageType,
        to_id: int,
        *,
        term: int = 0,
        index: int = 0,
        log_term: int = 0,
        reject: bool = False,
        reject_hint: int = 0,
        force: bool = False,
    ) -> None:
        """Send a message once all there is now is durable."""
        self._after_persist.append(
            Message(
                kind,
                to_id,
                self.id,
                term or self.term,
                index=index,
                log_term=log_term,
                reject=reject,
                reject_hint=reject_hint,
                force=force,
            )
        )

    # -- roles ----------------------------------------------------------------------------------------------------

    def _reset(self, term: int) -> None:
        """Forget what belonged to the role, and to the term if it changes."""
        if term != self.term:
            check(term > self.term, "the term goes back")
            self.term = term
            self.vote = 0
            self._campaign_wanted = False
            # Promises of an earlier term that did not leave yet are of no use to anybody; and an acknowledgement whose
            # entries are overwritten before they became durable had better never leave.
            self._after_persist = [message for message in self._after_persist if message.term >= term]
        self.leader_id = 0
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._draw_election_timeout()
        self._votes = {}
        self._reads.clear()
        self.lead_transferee = 0
        self._pending_conf_index = 0
        self._bytes_ceiling = -1
        self._appends_due = False
        last = self.log.last
        for member, progress in self._progress.items():
            fresh = Progress(0, last + 1, is_learner=progress.is_learner)
            if member == self.id:
                fresh.match = self.log.stable
                fresh.recent_active = True
            self._progress[member] = fresh

    def _become_follower(self, term: int, leader_id: int) -> None:
        was_leader = self.role is Role.LEADER
        self.role = Role.FOLLOWER
        self._reset(term)
        self.leader_id = leader_id
        if was_leader:
            self._logger.info("%x stepped down, follows at term %d", self.id, term)
        else:
            self._logger.debug("%x follows %x at term %d", self.id, leader_id, term)

    def _become_pre_candidate(self) -> None:
        check(self.role is not Role.LEADER, "a leader cannot ask for pre-votes")
        # Neither term nor vote change: an election that cannot be won leaves no trace (thesis 9.6).
        self.role = Role.PRE_CANDIDATE
        self._votes = {}
        self.leader_id = 0
        self._election_elapsed = 0
        self._logger.info("%x asks for pre-votes at term %d", self.id, self.term)

    def _become_candidate(self) -> None:
        check(self.role is not Role.LEADER, "a leader cannot become a candidate")
        self.role = Role.CANDIDATE
        self._reset(self.term + 1)
        self.vote = self.id
        self._logger.info("%x is a candidate at term %d", self.id, self.term)

    def _become_leader(self) -> None:
        check(self.role is Role.CANDIDATE, "only a candidate can become leader")
        self.role = Role.LEADER
        self._reset(self.term)
        self.leader_id = self.id
        own = self._progress[self.id]
        own.become_replicate()
        # There may be a membership change among the entries not committed yet: none is proposed before they are.
        self._pending_conf_index = self.log.last
        self._append_own([Entry(0, 0, EntryType.NORMAL, b"")])
        self._term_start = self.log.last
        self._bytes_allowed = self.log.bytes_total + self.config.uncommitted_bytes_max
        self._update_accepting()
        self._appends_due = True
        self._logger.info("%x leads at term %d", self.id, self.term)

    def _update_accepting(self) -> None:
        accepting = self.role is Role.LEADER and not self.lead_transferee and self.id in self._progress
        self._bytes_ceiling = self._bytes_allowed if accepting else -1

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass."""
        self._election_elapsed += 1
        if self.role is not Role.LEADER:
            if self._election_elapsed >= self._election_timeout and self._is_promotable():
                self._election_elapsed = 0
                self._campaign()
            return
        self._heartbeat_elapsed += 1
        if self._election_elapsed >= self.config.election_ticks:
            self._election_elapsed = 0
            if self.config.check_quorum and not self._quorum_is_active():
                self._logger.warning("%x heard no quorum for an election timeout", self.id)
                self._become_follower(self.term, 0)
                return
            if self.lead_transferee:
                self._logger.warning("%x gave up handing over to %x", self.id, self.lead_transferee)
                self._abort_transfer()
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._broadcast_heartbeat()

    def _quorum_is_active(self) -> bool:
        """Tell whether a quorum was heard since the last call."""
        active = {}
        for member, progress in self._progress.items():
            active[member] = progress.recent_active
            if member != self.id:
                progress.recent_active = False
        return self._tally(active) is VoteResult.WON

    # -- elections ------------------------------------------------------------------------------------------------

    def _is_promotable(self) -> bool:
        own = self._progress.get(self.id)
        return own is not None and not own.is_learner and self.log.snapshot is None

    def _is_only_voter(self) -> bool:
        state = self.conf_state
        return state.voters == (self.id,) and not state.voters_outgoing

    def _tally(self, votes: dict[int, bool]) -> VoteResult:
        return joint_vote(self.conf_state.voters, self.conf_state.voters_outgoing, votes)

    def _has_unapplied_conf_change(self) -> bool:
        """Tell whether a membership change is known to be committed and not yet in effect here."""
        log = self.log
        if log.conf_change_index <= log.applied or log.commit <= log.applied:
            return False
        start = max(log.applied, log.offset) + 1
        return any(entry.type for entry in log.slice(start, log.commit + 1))

    def _campaign(self, *, transfer: bool = False) -> None:
        """Start an election, preceded by a pre-vote unless leadership is being handed over."""
        self._campaign_wanted = False
        if self._has_unapplied_conf_change():
            # This member knows of a configuration in which it, or its majority, may no longer count.
            self._logger.info("%x does not campaign before the membership change it knows of is applied", self.id)
            self._campaign_wanted = self._campaign_forced = transfer
            return
        if self.config.pre_vote and not transfer:
            self._become_pre_candidate()
            self._record_vote(self.id, granted=True)  # a pre-vote promises nothing: no need to wait for the disk
            if self.role is Role.PRE_CANDIDATE:
                self._ask_for_pre_votes()
        else:
            self._ask_for_votes(force=transfer)

    def _ask_for_pre_votes(self) -> None:
        log = self.log
        for member in self._voters_but_self():
            self._messages.append(
                Message(MessageType.PRE_VOTE, member, self.id, self.term + 1, index=log.last, log_term=log.last_term)
            )
        # A new timeout, so that two that tied do not tie again (paper 5.2).
        self._draw_election_timeout()

    def _ask_for_votes(self, *, force: bool) -> None:
        self._become_candidate()
        log = self.log
        for member in self._voters_but_self():
            self._promise(MessageType.VOTE, member, index=log.last, log_term=log.last_term, force=force)

    def _draw_election_timeout(self) -> None:
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self.config.rng.randrange(0, ticks)

    def _voters_but_self(self) -> list[int]:
        state = self.conf_state
        return [member for member in sorted({*state.voters, *state.voters_outgoing}) if member != self.id]

    def _own_vote_is_durable(self) -> None:
        """Count the candidate's own vote, now that it cannot be forgotten."""
        if self.role is Role.CANDIDATE:
            self._record_vote(self.id, granted=True)

    def _on_vote(self, message: Message) -> None:
        candidate = message.from_id
        pre_vote = message.type is MessageType.PRE_VOTE
        answer = MessageType.PRE_VOTE_RESPONSE if pre_vote else MessageType.VOTE_RESPONSE
        can_vote = (
            self.vote == candidate or (not self.vote and not self.leader_id) or (pre_vote and message.term > self.term)
        )
        # A learner votes as well: it may be a voter already and not know it yet (its promotion not applied).
        if can_vote and self.log.is_up_to_date(message.index, message.log_term):
            self._promise(answer, candidate, term=message.term)
            if not pre_vote:
                self._election_elapsed = 0
                self.vote = candidate
            self._logger.debug("%x granted %x its %s for term %d", self.id, candidate, message.type.name, message.term)
        else:
            self._refuse_vote(answer, candidate)

    def _refuse_vote(self, answer: MessageType, candidate: int) -> None:
        """Refuse a vote, and tell the candidate what is committed.

        It may not know yet that a membership change is committed, and ask members that no longer count, and whose logs
        are longer; they could keep it from ever being elected, and be unable to be elected themselves.
        """
        commit = self.log.commit
        self._promise(answer, candidate, reject=True, index=commit, log_term=self.log.term(commit))

    def _on_vote_response(self, message: Message) -> None:
        expected = MessageType.PRE_VOTE_RESPONSE if self.role is Role.PRE_CANDIDATE else MessageType.VOTE_RESPONSE
        if self.role not in (Role.PRE_CANDIDATE, Role.CANDIDATE) or message.type is not expected:
            return
        if expected is MessageType.PRE_VOTE_RESPONSE and not message.reject and message.term != self.term + 1:
            return  # an answer to an earlier pre-vote
        if message.reject and message.log_term and self.log.matches(message.index, message.log_term):
            self.log.commit_to(message.index)  # what is committed anywhere is, and so is everything before it
        self._record_vote(message.from_id, granted=not message.reject)

    def _record_vote(self, voter: int, *, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        result = self._tally(self._votes)
        if result is VoteResult.LOST:
            self._become_follower(self.term, 0)
        elif result is VoteResult.WON:
            if self.role is Role.CANDIDATE:
                self._become_leader()
            else:
                self._ask_for_votes(force=False)

    def _on_timeout_now(self, message: Message) -> None:
        if self.role is not Role.FOLLOWER or not self._is_promotable():
            return
        self._logger.info("%x campaigns at once: %x hands over", self.id, message.from_id)
        self._campaign(transfer=True)

    # -- following ------------------------------------------------------------------------------------------------

    def _follow(self, leader_id: int) -> None:
        """Accept the sender of a leader's message of this term."""
        if self.role is Role.LEADER or (self.leader_id and self.leader_id != leader_id):
            raise InvariantError(f"{self.leader_id:x} and {leader_id:x} both lead term {self.term}")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, leader_id)
        self.leader_id = leader_id
        self._election_elapsed = 0

    def _on_append(self, message: Message) -> None:
        self._follow(message.from_id)
        log = self.log
        if message.index < log.commit:
            self._promise(MessageType.APPEND_RESPONSE, message.from_id, index=log.commit)
            return
        last_new = log.maybe_append(message.index, message.log_term, message.entries)
        if last_new is not None:
            log.commit_to(min(message.commit, last_new))
            self._promise(MessageType.APPEND_RESPONSE, message.from_id, index=last_new)
            return
        # Tell where the logs may match at best, a whole term further down at a time (end of paper 5.3).
        hint, hint_term = log.conflict_by_term(min(message.index, log.last), message.log_term)
        self._promise(
            MessageType.APPEND_RESPONSE,
            message.from_id,
            index=message.index,
            reject=True,
            reject_hint=hint,
            log_term=hint_term,
        )

    def _on_heartbeat(self, message: Message) -> None:
        self._follow(message.from_id)
        self.log.commit_to(message.commit)
        self._messages.append(
            Message(MessageType.HEARTBEAT_RESPONSE, message.from_id, self.id, self.term, context=message.context)
        )

    def _on_snapshot(self, message: Message) -> None:
        self._follow(message.from_id)
        snapshot = message.snapshot
        if snapshot is None:
            self._logger.warning("%x ignored a snapshot message of %x without one", self.id, message.from_id)
            return
        self._maybe_restore(snapshot)
        # If it was restored, this is its index: the acknowledgement waits until it is durable.
        self._promise(MessageType.APPEND_RESPONSE, message.from_id, index=self.log.commit)

    def _maybe_restore(self, snapshot: Snapshot) -> bool:
        log = self.log
        if snapshot.index <= log.commit:
            return False
        if log.matches(snapshot.index, snapshot.term):
            # The entries are all here; knowing that they are committed is enough.
            log.commit_to(snapshot.index)
            return False
        check_conf_state(snapshot.conf_state)
        log.restore(snapshot)
        self._switch_config(snapshot.conf_state)
        self._logger.info("%x restores the snapshot of index %d, term %d", self.id, snapshot.index, snapshot.term)
        return True

    # -- leading: replication -------------------------------------------------------------------------------------

    def _flush_appends(self) -> None:
        """Send to every member what its window takes."""
        self._appends_due = False
        self._flushed_last = self.log.last
        for member in self._peers:
            progress = self._progress[member]
            while self._send_append(member, progress):
                pass

    def _send_append(self, member: int, progress: Progress) -> bool:
        """Send one append, or a snapshot, if there is something to send and the window is open; tell whether."""
        config = self.config
        log = self.log
        if progress.is_paused(config.inflight_messages_max, config.inflight_bytes_max):
            return False
        last = log.last
        start = progress.next
        replicating = progress.state is ProgressState.REPLICATE
        if replicating and start > last and progress.sent_commit >= log.commit and not progress.is_doubtful:
            return False
        previous = start - 1
        if previous < log.offset:
            return self._send_snapshot(member, progress)
        entries: list[Entry] = []
        size = 0
        if start <= last:
            entries, size = log.slice_bounded(start, last + 1, config.message_bytes_max, ENTRY_OVERHEAD_BYTES)
        self._messages.append(
            Message(
                MessageType.APPEND,
                member,
                self.id,
                self.term,
                index=previous,
                log_term=log.term(previous),
                commit=log.commit,
                entries=entries,
            )
        )
        progress.sent(previous + len(entries), len(entries), size)
        progress.sent_commit = log.commit
        return True

    def _send_snapshot(self, member: int, progress: Progress) -> bool:
        log = self.log
        if not progress.recent_active:
            return False  # nobody there to receive it
        index = log.applied
        check(index >= log.offset, "entries are dropped that the state does not include")
        # The state as it is now: the application sends exactly this one, or a newer one.
        snapshot = Snapshot(index, log.term(index), self.conf_state)
        self._messages.append(Message(MessageType.SNAPSHOT, member, self.id, self.term, snapshot=snapshot))
        progress.become_snapshot(index)
        self._logger.info("%x sends %x a snapshot of index %d", self.id, member, index)
        return False

    def _on_append_response(self, message: Message) -> None:
        progress = self._leaders_view(message)
        if progress is None:
            return
        progress.recent_active = True
        log = self.log
        if message.reject:
            hint = min(message.reject_hint, log.last)
            if message.log_term:
                hint, _ = log.conflict_by_term(hint, message.log_term)
            if progress.maybe_decrease(message.index, hint):
                if progress.state is ProgressState.REPLICATE:
                    progress.become_probe()
                self._appends_due = True
            return
        if message.index > log.last:
            raise InvariantError(f"{message.from_id:x} acknowledged {message.index}, the last entry is {log.last}")
        was_paused = progress.is_paused(self.config.inflight_messages_max, self.config.inflight_bytes_max)
        advanced = progress.maybe_update(message.index)
        if progress.state is ProgressState.PROBE:
            if advanced or progress.match == message.index:
                progress.become_replicate()
        elif progress.state is ProgressState.SNAPSHOT:
            if progress.match >= log.offset:
                # What it has now reaches the entries that are here, by this snapshot or a newer one.
                progress.become_probe()
                progress.become_replicate()
        else:
            progress.free_to(message.index)
        if advanced:
            self._maybe_commit()
        if was_paused or progress.next <= log.last or progress.sent_commit < log.commit:
            self._appends_due = True
        if message.from_id == self.lead_transferee and progress.match == log.last:
            self._send_timeout_now(message.from_id)

    def _leaders_view(self, message: Message) -> Progress | None:
        """Answer the progress of the sender of an answer, if this member leads and the sender is a member."""
        if self.role is not Role.LEADER:
            return None
        return self._progress.get(message.from_id)

    def _maybe_commit(self) -> bool:
        """Commit what a quorum has, if it is of this term (paper 5.3, 5.4.2); tell whether anything."""
        log = self.log
        if self._is_only_voter():
            index = self._progress[self.id].match
        else:
            match = {member: progress.match for member, progress in self._progress.items()}
            index = joint_index(self.conf_state.voters, self.conf_state.voters_outgoing, match)
        if index <= log.commit or log.term(index) != self.term:
            return False
        log.commit_to(index)
        allowed = log.bytes_until(index) + self.config.uncommitted_bytes_max
        if allowed > self._bytes_allowed:
            self._bytes_allowed = allowed
            self._update_accepting()
        if self._peers:
            self._appends_due = True
        if self._reads.waiting and self._is_only_voter():
            self._begin_read_round()
        return True

    def _own_entries_are_durable(self) -> None:
        """Count the leader itself up to what it has on disk."""
        if self.role is Role.LEADER:
            own = self._progress.get(self.id)
            if own is not None and own.maybe_update(self.log.stable):
                self._maybe_commit()

    def report_unreachable(self, member: int) -> None:
        """Note that the last messages to ``member`` were probably lost."""
        progress = self._progress.get(member)
        if self.role is Role.LEADER and progress is not None and progress.state is ProgressState.REPLICATE:
            # What was sent ahead may be lost: find out where to go on.
            progress.become_probe()

    def report_snapshot(self, member: int, *, ok: bool) -> None:
        """Note that sending a snapshot to ``member`` has ended, and whether it arrived."""
        progress = self._progress.get(member)
        if self.role is not Role.LEADER or progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        # Arrived: wait for the member's own answer. Failed: wait a heartbeat before trying again.
        progress.probe_sent = True

    # -- leading: heartbeats and reads ----------------------------------------------------------------------------

    def _broadcast_heartbeat(self) -> None:
        context = self._reads.context
        commit = self.log.commit
        for member in self._peers:
            progress = self._progress[member]
            known = min(progress.match, commit)
            self._messages.append(
                Message(MessageType.HEARTBEAT, member, self.id, self.term, commit=known, context=context)
            )
            progress.sent_commit = max(progress.sent_commit, known)

    def _on_heartbeat_response(self, message: Message) -> None:
        progress = self._leaders_view(message)
        if progress is None:
            return
        progress.recent_active = True
        if progress.state is ProgressState.PROBE:
            progress.probe_sent = False
            self._appends_due = True
        elif progress.state is ProgressState.REPLICATE and progress.match < self.log.last:
            if progress.is_paused(self.config.inflight_messages_max, self.config.inflight_bytes_max):
                # It lives and yet the window does not move: let one message through.
                progress.free_first()
            # Appends may have been lost. If there is nothing new to send, an empty one finds out.
            progress.is_doubtful = True
            self._appends_due = True
        if message.context:
            acks = self._reads.acknowledge(message.from_id, message.context)
            if acks is not None:
                self._maybe_finish_read_round()

    def read_index(self, context: bytes) -> bool:
        """Ask for an index at which a read that begins now is linearizable (thesis 6.4); see ``Ready.read_states``.

        The answer may never come (messages are lost, leaders change): ask again, with another context, after a while
        and whenever the leader changed.

        Args:
            context: comes back with the answer; different for every call.

        Returns:
            False if nothing was started: no leader is known, or too many reads wait.
        """
        if self.role is Role.LEADER:
            return self._take_read(self.id, context)
        if not self.leader_id:
            return False
        self._messages.append(Message(MessageType.READ_INDEX, self.leader_id, self.id, context=context))
        return True

    def _on_read_index(self, message: Message) -> None:
        if self.role is Role.LEADER:
            self._take_read(message.from_id, message.context)

    def _on_read_index_response(self, message: Message) -> None:
        self._read_states.append(ReadState(message.index, message.context))

    def _take_read(self, from_id: int, context: bytes) -> bool:
        if len(self._reads) >= self.config.pending_reads_max:
            self._logger.warning("%x dropped a read of %x: too many wait", self.id, from_id)
            return False
        self._reads.waiting.append((from_id, context))
        if self._is_only_voter():
            self._begin_read_round()
        return True

    def _read_round_is_due(self) -> bool:
        reads = self._reads
        return bool(reads.waiting) and not reads.pending and self.has_committed_in_term

    def _begin_read_round(self) -> None:
        """Begin a round if reads wait, none is under way, and the commit index is known to be current."""
        while self._read_round_is_due():
            self._reads.begin(self.log.commit, self.id)
            if self._tally(self._reads.acks) is not VoteResult.WON:
                self._broadcast_heartbeat()
                return
            self._maybe_finish_read_round()

    def _maybe_finish_read_round(self) -> None:
        reads = self._reads
        if not reads.pending or self._tally(reads.acks) is not VoteResult.WON:
            return
        for from_id, context in reads.finish():
            if from_id == self.id:
                self._read_states.append(ReadState(reads.index, context))
            else:
                self._messages.append(
                    Message(
                        MessageType.READ_INDEX_RESPONSE,
                        from_id,
                        self.id,
                        self.term,
                        index=reads.index,
                        context=context,
                    )
                )

    # -- leading: handing over ------------------------------------------------------------------------------------

    def transfer_leader(self, member: int) -> None:
        """Hand leadership over to ``member`` (thesis 3.10); a follower passes the wish on to the leader.

        Proposals are refused until ``member`` leads, or the attempt is given up after an election timeout.
        """
        if self.role is not Role.LEADER:
            if self.leader_id:
                self._messages.append(Message(MessageType.TRANSFER_LEADER, self.leader_id, self.id, index=member))
            return
        progress = self._progress.get(member)
        if progress is None or progress.is_learner or member == self.id or member == self.lead_transferee:
            return
        self.lead_transferee = member
        self._election_elapsed = 0  # the attempt gets a whole election timeout
        self._update_accepting()
        self._logger.info("%x hands leadership over to %x", self.id, member)
        if progress.match == self.log.last:
            self._send_timeout_now(member)
        else:
            self._appends_due = True

    def _on_transfer_leader(self, message: Message) -> None:
        if self.role is Role.LEADER:
            self.transfer_leader(message.index)

    def _send_timeout_now(self, member: int) -> None:
        self._messages.append(Message(MessageType.TIMEOUT_NOW, member, self.id, self.term))

    def _abort_transfer(self) -> None:
        self.lead_transferee = 0
        self._update_accepting()

    # -- membership -----------------------------------------------------------------------------------------------

    def apply_conf_change(self, change: ConfChange) -> ConfState:
        """Put a committed membership change into effect; called when its entry is applied.

        A change that is not possible from the present configuration has no effect, on any member alike. Neither has one
        that was handed out before a newer snapshot came in: the snapshot's configuration is in force already.

        Returns:
            The configuration in force now.
        """
        if self.log.applied < self.log.offset:
            return self.conf_state
        try:
            following = apply_change(self.conf_state, change)
        except ConfChangeError as error:
            self._logger.warning("%x: a committed membership change has no effect: %s", self.id, error)
            return self.conf_state
        self._switch_config(following)
        return self.conf_state

    def _rebuild_progress(self) -> None:
        state = self.conf_state
        known = self._progress
        members = sorted({*state.voters, *state.voters_outgoing, *state.learners})
        progress = {}
        for member in members:
            one = known.get(member)
            if one is None:
                one = Progress(0, self.log.last + 1, is_learner=False)
                # Counted as heard of, so that a leader does not step down before the new member could answer.
                one.recent_active = True
                if member == self.id:
                    one.match = self.log.stable
            one.is_learner = member in state.learners
            progress[member] = one
        self._progress = progress
        self._peers = [member for member in members if member != self.id]

    def _switch_config(self, state: ConfState) -> None:
        self.conf_state = state
        self._rebuild_progress()
        self._logger.info("%x: configuration is now %s", self.id, state)
        if self.role is not Role.LEADER:
            return
        own = self._progress.get(self.id)
        if own is None or own.is_learner:
            self._resign()
            return
        self._update_accepting()
        self._maybe_commit()
        self._appends_due = True
        target = self._progress.get(self.lead_transferee)
        if self.lead_transferee and (target is None or target.is_learner):
            self._abort_transfer()
        self._maybe_finish_read_round()

    def _resign(self) -> None:
        """Stop leading: this member was removed (thesis 4.2.2), or made a learner.

        The others are told that the change is committed, and one that has all there is is asked to take over at once.
        """
        self._flush_appends()
        for voter in self.conf_state.voters:
            if self._progress[voter].match == self.log.last:
                self._send_timeout_now(voter)
                break
        self._become_follower(self.term, 0)

    def _maybe_leave_joint(self) -> None:
        """Propose to leave a joint configuration that is to be left automatically."""
        if (
            self.conf_state.auto_leave
            and self.role is Role.LEADER
            and not self.lead_transferee
            and self.log.applied >= self._pending_conf_index
        ):
            self._append_own([Entry(0, 0, EntryType.CONF_CHANGE, ConfChange().encode())])
            self._pending_conf_index = self.log.last
            self._logger.info("%x proposes to leave the joint configuration", self.id)
