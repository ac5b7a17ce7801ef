"""Membership changes: their values, their encoding, and what configuration follows from one.

A configuration is a :class:`~kvserver.raft.messages.ConfState`. Going from one to the next is a pure function,
:func:`apply_change`, that the leader calls before it proposes (to refuse nonsense) and every member calls when the
entry is applied. A change of at most one voter goes directly (thesis 4.1-4.2); anything larger goes through a joint
configuration (thesis 4.3), in which the old and the new majority must agree, and which is left by a second change.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from kvserver.raft.errors import ConfChangeError
from kvserver.raft.messages import ConfState

_HEADER = struct.Struct("<BBH")  # format, transition, number of changes
_SINGLE = struct.Struct("<BQ")  # type, node id
_FORMAT = 1


class ConfChangeType(IntEnum):
    """What happens to one member; stands on disk, never renumber."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER_NODE = 3


class ConfChangeTransition(IntEnum):
    """How to get to the new configuration; stands on disk, never renumber."""

    AUTO = 0
    """Directly if at most one voter changes, else jointly, left automatically."""
    JOINT_IMPLICIT = 1
    """Jointly, left automatically."""
    JOINT_EXPLICIT = 2
    """Jointly, left by a further change without changes in it."""


@dataclass(frozen=True, slots=True)
class ConfChangeSingle:
    """One member's change."""

    type: ConfChangeType
    node_id: int


@dataclass(frozen=True, slots=True)
class ConfChange:
    """A membership change (v2): any number of members at once. Without any it leaves a joint configuration.

    Attributes:
        changes: applied in order.
        transition: how.
        context: the application's, carried along.
    """

    changes: tuple[ConfChangeSingle, ...] = ()
    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        """Whether this is the change that leaves a joint configuration."""
        return not self.changes and self.transition is ConfChangeTransition.AUTO

    def encode(self) -> bytes:
        """Answer the data of its log entry."""
        parts = [_HEADER.pack(_FORMAT, self.transition, len(self.changes))]
        parts.extend(_SINGLE.pack(change.type, change.node_id) for change in self.changes)
        parts.append(self.context)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> ConfChange:
        """Read the data of a log entry.

        Raises:
            ConfChangeError: it is not one that this version writes.
        """
        try:
            version, transition, count = _HEADER.unpack_from(data)
            if version != _FORMAT:
                raise ConfChangeError(f"membership change of format {version}, this version reads format {_FORMAT}")
            position = _HEADER.size
            changes = []
            for _ in range(count):
                kind, node_id = _SINGLE.unpack_from(data, position)
                changes.append(ConfChangeSingle(ConfChangeType(kind), node_id))
                position += _SINGLE.size
            return cls(tuple(changes), ConfChangeTransition(transition), data[position:])
        except (struct.error, ValueError) as error:
            raise ConfChangeError(f"membership change of {len(data)} bytes cannot be read: {error}") from error


def apply_change(state: ConfState, change: ConfChange) -> ConfState:
    """Answer the configuration that ``change`` leads to from ``state``.

    Raises:
        ConfChangeError: it cannot be made from there: a joint configuration has to be left first (or is not there to
            be left), or no voter would remain.
    """
    if change.leaves_joint:
        return _leave_joint(state)
    if state.voters_outgoing:
        raise ConfChangeError("the configuration is joint; it has to be left before it can change again")
    joint = change.transition is not ConfChangeTransition.AUTO or len(change.changes) > 1
    if joint:
        if not state.voters:
            raise ConfChangeError("a configuration without voters cannot become joint")
        auto_leave = change.transition is not ConfChangeTransition.JOINT_EXPLICIT
        state = ConfState(state.voters, state.learners, state.voters, (), auto_leave)
    following = _apply_singles(state, change.changes)
    if not following.voters:
        raise ConfChangeError("the change would remove all voters")
    if not joint and len(set(following.voters) ^ set(state.voters)) > 1:
        raise ConfChangeError("more than one voter changes without a joint configuration")
    return following


def _leave_joint(state: ConfState) -> ConfState:
    if not state.voters_outgoing:
        raise ConfChangeError("the configuration is not joint; there is nothing to leave")
    learners = tuple(sorted({*state.learners, *state.learners_next}))
    return ConfState(state.voters, learners)


def _apply_singles(state: ConfState, changes: tuple[ConfChangeSingle, ...]) -> ConfState:
    voters, learners, learners_next = set(state.voters), set(state.learners), set(state.learners_next)
    outgoing = state.voters_outgoing
    for change in changes:
        node = change.node_id
        if not node:
            continue  # a change that was found void after it was proposed
        if change.type is ConfChangeType.UPDATE_NODE:
            continue
        voters.discard(node)
        learners.discard(node)
        learners_next.discard(node)
        if change.type is ConfChangeType.ADD_NODE:
            voters.add(node)
        elif change.type is ConfChangeType.ADD_LEARNER_NODE:
            # A voter of the outgoing majority still counts there: it becomes a learner when that is left.
            (learners_next if node in outgoing else learners).add(node)
    return ConfState(
        tuple(sorted(voters)), tuple(sorted(learners)), outgoing, tuple(sorted(learners_next)), state.auto_leave
    )


def check_conf_state(state: ConfState) -> None:
    """Refuse a configuration that no sequence of changes leads to, as from a damaged snapshot.

    Raises:
        ConfChangeError: it is not consistent; the message says how.
    """
    groups = (state.voters, state.learners, state.voters_outgoing, state.learners_next)
    if any(tuple(sorted(set(group))) != group for group in groups):
        raise ConfChangeError("the ids of a configuration are sorted, each once")
    if any(0 in group for group in groups):
        raise ConfChangeError("0 is no member's id")
    voters, outgoing = set(state.voters), set(state.voters_outgoing)
    if set(state.learners) & (voters | outgoing):
        raise ConfChangeError("a learner is a voter as well")
    if not set(state.learners_next) <= outgoing - voters:
        raise ConfChangeError("a voter that becomes a learner is not one of the outgoing voters alone")
    if not outgoing and state.auto_leave:
        raise ConfChangeError("a configuration that is not joint cannot be left")
