"""Quorum arithmetic against a twin so naive that it is obviously right."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from kvserver.raft.quorum import INDEX_MAX, VoteResult, joint_index, joint_vote, majority_index, majority_vote

voter_sets = st.sets(st.integers(1, 9), max_size=9).map(lambda ids: tuple(sorted(ids)))
matches = st.dictionaries(st.integers(1, 9), st.integers(0, 6))
votes = st.dictionaries(st.integers(1, 9), st.booleans())


def majorities(voters: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(combinations(voters, len(voters) // 2 + 1)) if voters else [()]


def naive_index(groups: list[tuple[int, ...]], match: dict[int, int]) -> int:
    """The highest index such that every group has a majority that has it."""
    best = 0
    for index in range(8):
        if all(any(all(match.get(v, 0) >= index for v in some) for some in majorities(group)) for group in groups):
            best = index
    return best


def naive_vote(groups: list[tuple[int, ...]], given_votes: dict[int, bool]) -> VoteResult:
    """Won if it is won whatever comes, lost if it is lost whatever comes."""

    def won(values: dict[int, bool]) -> bool:
        return all(any(all(values[v] for v in some) for some in majorities(group)) for group in groups)

    voters = sorted({voter for group in groups for voter in group})
    if won({voter: given_votes.get(voter, False) for voter in voters}):
        return VoteResult.WON
    if not won({voter: given_votes.get(voter, True) for voter in voters}):
        return VoteResult.LOST
    return VoteResult.PENDING


@given(voter_sets, matches)
def test_majority_index(voters: tuple[int, ...], match: dict[int, int]) -> None:
    expected = naive_index([voters], match) if voters else INDEX_MAX
    assert majority_index(voters, match) == expected


@given(voter_sets, voter_sets, matches)
def test_joint_index(incoming: tuple[int, ...], outgoing: tuple[int, ...], match: dict[int, int]) -> None:
    expected = naive_index([incoming, outgoing], match) if incoming or outgoing else INDEX_MAX
    assert joint_index(incoming, outgoing, match) == expected


@given(voter_sets, votes)
def test_majority_vote(voters: tuple[int, ...], given_votes: dict[int, bool]) -> None:
    assert majority_vote(voters, given_votes) == naive_vote([voters], given_votes)


@given(voter_sets, voter_sets, votes)
def test_joint_vote(incoming: tuple[int, ...], outgoing: tuple[int, ...], given_votes: dict[int, bool]) -> None:
    assert joint_vote(incoming, outgoing, given_votes) == naive_vote([incoming, outgoing], given_votes)


@given(voter_sets, voter_sets, matches)
def test_nobody_outside_counts(incoming: tuple[int, ...], outgoing: tuple[int, ...], match: dict[int, int]) -> None:
    inside = {voter: index for voter, index in match.items() if voter in incoming or voter in outgoing}
    assert joint_index(incoming, outgoing, match) == joint_index(incoming, outgoing, inside)
