"""The surface of the core: the algorithm, and the contract with whoever does the writing, sending and applying.

A turn of the caller::

    if node.has_ready():
        ready = node.ready()
        send ready.messages; start writing ready.snapshot, .hard_state, .entries; apply ready.committed_entries
        node.applied_to(index of the last applied)
    ... once the write is durable: send ready.messages_after_persist; node.persisted(ready)

At most one ready waits to be persisted. While one does, ``ready`` may be called again: what it returns then has nothing
to persist, only messages that may leave at once, committed entries and read states; what has to be written collects for
the next one (group commit).

Two rules about the hard state. Its commit index is a hint: a change of it alone is not worth a write, so it goes along
with the next entries, or with the next tick. But a committed membership change is handed out only when a hard state
that says it is committed is durable: a member that restarts never falls back behind a configuration it has acted on,
else it could win an election by a majority that is one no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvserver.raft._invariant import check
from kvserver.raft.confchange import ConfChange, ConfChangeSingle, ConfChangeType
from kvserver.raft.config import Config
from kvserver.raft.core import Raft
from kvserver.raft.messages import ConfState, Entry, EntryType, HardState, InitialState, Ready, Role, SoftState
from kvserver.raft.tracker import ProgressStatus


@dataclass(frozen=True, slots=True)
class Status:
    """What a member knows of itself and, leading, of the others (``progress``; else empty)."""

    id: int
    term: int
    vote: int
    role: Role
    leader_id: int
    lead_transferee: int
    first_index: int
    last_index: int
    stable_index: int
    commit_index: int
    applied_index: int
    conf_state: ConfState
    progress: dict[int, ProgressStatus]


class RawNode(Raft):
    """One member's core. Not safe for use from several threads; every call returns at once.

    Args:
        config: its settings.
        initial: what it has on disk; nothing for a member that starts for the first time.
    """

    def __init__(self, config: Config, initial: InitialState | None = None) -> None:
        if initial is None:
            initial = InitialState()
        super().__init__(config, initial)
        self._recorded = initial.hard_state
        """The hard state as of the last ready that had one."""
        self._durable_commit = initial.hard_state.commit
        self._outstanding: Ready | None = None
        self._soft_state = SoftState()
        self._commit_due = False

    # -- inputs ---------------------------------------------------------------------------------------------------

    def bootstrap(self, peers: Sequence[tuple[int, bytes]]) -> None:
        """Found a new cluster: begin the log with one committed membership change for each founding member.

        Every founding member does this with the same ``peers`` in the same order, once, on an empty log. The changes
        are in force at once, and come out as committed entries as well. They are all in the first ready: if a crash
        leaves only some of them on disk, nothing was promised yet, and the member has to be founded again on an empty
        log. (A member that went on with some would take those for the whole cluster.)

        Args:
            peers: id and context (see ``ConfChange.context``) of each founding member.
        """
        check(self.log.last == 0 and self.term == 0, "only an empty log can be bootstrapped")
        check(peers, "a cluster has at least one founding member")
        self._become_follower(1, 0)
        changes = [
            ConfChange((ConfChangeSingle(ConfChangeType.ADD_NODE, peer),), context=context) for peer, context in peers
        ]
        self.log.append([Entry(1, at + 1, EntryType.CONF_CHANGE, change.encode()) for at, change in enumerate(changes)])
        self.log.commit_to(len(changes))
        for change in changes:
            self.apply_conf_change(change)

    def campaign(self) -> None:
        """Start an election without waiting for a timeout, as soon as known membership changes are applied.

        The only voter of a cluster is elected two readies later: the first makes its term and vote durable, the second
        holds its first entry as leader.
        """
        self._campaign_wanted = True
        self._campaign_forced = False

    def tick(self) -> None:
        """Let one tick pass: the unit of the election timeout and the heartbeat interval."""
        super().tick()
        if self.log.commit > self._recorded.commit:
            self._commit_due = True

    def persisted(self, ready: Ready) -> None:
        """Note that all that ``ready`` asked to persist is durable.

        Entries that were overwritten since they were handed out do not count, neither for this member's own
        acknowledgement nor for what can be applied.
        """
        check(ready is self._outstanding, "the persisted ready is not the one that waits to be persisted")
        self._outstanding = None
        log = self.log
        if ready.snapshot is not None and ready.snapshot is log.snapshot:
            log.snapshot = None
        log.persisted()
        hard_state = ready.hard_state
        if hard_state is not None:
            self._durable_commit = hard_state.commit
            if hard_state.vote == self.id and hard_state.term == self.term:
                self._own_vote_is_durable()
        self._own_entries_are_durable()

    def applied_to(self, index: int) -> None:
        """Note that the state includes all entries up to ``index``, or the snapshot of that index."""
        self.log.applied_to(index)

    def compact(self, index: int) -> None:
        """Drop log entries up to ``index``, which must be applied. Members that still need them get a snapshot."""
        self.log.compact(index)

    # -- output ---------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Tell whether :meth:`ready` has something to say."""
        log = self.log
        last = log.offset + len(log.entries)
        # Looked at first: a membership change that is held back makes a write of the hard state due.
        if log.handed_committed < log.committed_limit() and log.handed_committed < self._apply_limit():
            return True
        if self._outstanding is None:
            if log.handed_stable < last or self._after_persist or self._commit_due or log.snapshot is not None:
                return True
            recorded = self._recorded
            if recorded.term != self.term or recorded.vote != self.vote:
                return True
        if self._messages or self._read_states or self._appends_due:
            return True
        soft_state = self._soft_state
        if soft_state.role is not self.role or soft_state.leader_id != self.leader_id:
            return True
        if self.role is Role.LEADER and (
            (self._peers and self._flushed_last < last) or self._read_round_is_due() or self._leave_is_due()
        ):
            return True
        return self._campaign_wanted and not self._has_unapplied_conf_change()

    def ready(self) -> Ready:
        """Answer what the caller has to do now; see :class:`~kvserver.raft.messages.Ready`.

        Hot: one call a batch, no work per entry (benchmark ``put``).
        """
        if self._campaign_wanted and not self._has_unapplied_conf_change():
            self._campaign_wanted = False
            if self.role is not Role.LEADER and self._is_promotable():
                self._campaign(transfer=self._campaign_forced)
        log = self.log
        if self.role is Role.LEADER:
            if self.conf_state.auto_leave:
                self._maybe_leave_joint()
            log.mark()
            self._flush_appends()
            if self._reads.waiting:
                self._begin_read_round()
        ready = Ready()
        limit = log.committed_limit()
        if log.handed_committed < limit:
            limit = self._apply_limit()
            if log.handed_committed < limit:
                config = self.config
                ready.committed_entries = log.take_committed(
                    limit, config.committed_entries_max, config.committed_bytes_max
                )
        if self._outstanding is None:
            self._fill_persistent(ready)
        if self._messages:
            ready.messages = self._messages
            self._messages = []
        if self._read_states:
            ready.read_states = self._read_states
            self._read_states = []
        soft_state = self._soft_state
        if soft_state.role is not self.role or soft_state.leader_id != self.leader_id:
            ready.soft_state = self._soft_state = SoftState(self.leader_id, self.role)
        return ready

    def _fill_persistent(self, ready: Ready) -> None:
        """Put in what is to be made durable, and what may leave only after it."""
        log = self.log
        recorded = self._recorded
        if log.snapshot is not None:
            ready.snapshot = log.snapshot
            ready.must_sync = True
        if log.handed_stable < log.last:
            ready.entries = log.take_unstable()
            ready.must_sync = True
        promised = recorded.term != self.term or recorded.vote != self.vote
        if promised or (recorded.commit != log.commit and (ready.must_sync or self._commit_due)):
            ready.hard_state = self._recorded = HardState(self.term, self.vote, log.commit)
            ready.must_sync = ready.must_sync or promised or self._conf_change_held()
        self._commit_due = False
        if self._after_persist:
            ready.messages_after_persist = self._after_persist
            self._after_persist = []
        if ready.needs_persist:
            self._outstanding = ready

    def _apply_limit(self) -> int:
        """Answer up to where entries may be handed out, given that log and snapshot allow it.

        A membership change only once its commit is durable (see the module's text); if one is held back, its hard state
        is written with the next ready.
        """
        log = self.log
        limit = log.committed_limit()
        if log.conf_change_index <= self._durable_commit or log.conf_change_index <= log.handed_committed:
            return limit
        start = max(self._durable_commit, log.handed_committed) + 1
        if start > limit:
            return limit
        for entry in log.slice(start, limit + 1):
            if entry.type:
                if self._recorded.commit < entry.index:
                    self._commit_due = True
                return entry.index - 1
        return limit

    def _conf_change_held(self) -> bool:
        log = self.log
        return log.committed_limit() > log.handed_committed and self._apply_limit() < log.committed_limit()

    def _leave_is_due(self) -> bool:
        return self.conf_state.auto_leave and not self.lead_transferee and self.log.applied >= self._pending_conf_index

    def status(self) -> Status:
        """Answer a copy of what this member knows."""
        log = self.log
        progress = {}
        if self.role is Role.LEADER:
            progress = {
                member: ProgressStatus(
                    one.match,
                    one.next,
                    one.state,
                    one.is_learner,
                    one.recent_active,
                    one.pending_snapshot,
                    one.inflight_count,
                )
                for member, one in self._progress.items()
            }
        return Status(
            self.id,
            self.term,
            self.vote,
            self.role,
            self.leader_id,
            self.lead_transferee,
            log.first,
            log.last,
            log.stable,
            log.commit,
            log.applied,
            self.conf_state,
            progress,
        )
