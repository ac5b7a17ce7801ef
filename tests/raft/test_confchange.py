"""Membership changes: from one configuration to the next (thesis chapter 4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.raft import (
    ConfChange,
    ConfChangeError,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfState,
)
from kvserver.raft.confchange import apply_change, check_conf_state
from kvserver.raft.quorum import VoteResult, joint_vote

ADD, REMOVE, LEARNER = ConfChangeType.ADD_NODE, ConfChangeType.REMOVE_NODE, ConfChangeType.ADD_LEARNER_NODE

singles = st.builds(ConfChangeSingle, st.sampled_from(list(ConfChangeType)), st.integers(0, 6))
changes = st.builds(
    ConfChange,
    st.lists(singles, max_size=4).map(tuple),
    st.sampled_from(list(ConfChangeTransition)),
    st.binary(max_size=10),
)


def change(
    *parts: tuple[ConfChangeType, int], transition: ConfChangeTransition = ConfChangeTransition.AUTO
) -> ConfChange:
    return ConfChange(tuple(ConfChangeSingle(kind, node) for kind, node in parts), transition)


@given(changes)
def test_encoding_comes_back(value: ConfChange) -> None:
    assert ConfChange.decode(value.encode()) == value


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x00\x00\x00", b"\x01\x00\x01\x00", b"\x01\x09\x00\x00"])
def test_foreign_encodings_are_refused(data: bytes) -> None:
    with pytest.raises(ConfChangeError):
        ConfChange.decode(data)


def test_one_voter_changes_directly() -> None:
    state = ConfState(voters=(1, 2))
    assert apply_change(state, change((ADD, 3))) == ConfState(voters=(1, 2, 3))
    assert apply_change(state, change((REMOVE, 2))) == ConfState(voters=(1,))
    assert apply_change(state, change((LEARNER, 2))) == ConfState(voters=(1,), learners=(2,))
    assert apply_change(state, change((ADD, 2))) == state


def test_several_go_through_a_joint_configuration_and_leave_it() -> None:
    state = apply_change(ConfState(voters=(1, 2, 3)), change((ADD, 4), (REMOVE, 2), (LEARNER, 3)))
    assert state == ConfState((1, 4), (), (1, 2, 3), (3,), auto_leave=True)
    with pytest.raises(ConfChangeError, match="joint"):
        apply_change(state, change((ADD, 5)))
    assert apply_change(state, ConfChange()) == ConfState(voters=(1, 4), learners=(3,))


def test_explicit_joint_configurations_are_not_left_automatically() -> None:
    state = apply_change(ConfState(voters=(1,)), change((ADD, 2), transition=ConfChangeTransition.JOINT_EXPLICIT))
    assert state == ConfState((1, 2), (), (1,), ())


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfChangeError, match="not joint"):
        apply_change(ConfState(voters=(1,)), ConfChange())
    with pytest.raises(ConfChangeError, match="all voters"):
        apply_change(ConfState(voters=(1,)), change((REMOVE, 1)))
    with pytest.raises(ConfChangeError, match="all voters"):
        apply_change(ConfState(voters=(1,)), change((LEARNER, 1)))
    with pytest.raises(ConfChangeError, match="without voters"):
        apply_change(ConfState(), change((ADD, 1), (ADD, 2)))


@pytest.mark.parametrize(
    "state",
    [
        ConfState(voters=(2, 1)),
        ConfState(voters=(1, 1)),
        ConfState(voters=(0, 1)),
        ConfState(voters=(1,), learners=(1,)),
        ConfState(voters=(1,), learners=(2,), voters_outgoing=(2,)),
        ConfState(voters=(1,), voters_outgoing=(1, 2), learners_next=(3,)),
        ConfState(voters=(1,), auto_leave=True),
    ],
)
def test_inconsistent_configurations_are_refused(state: ConfState) -> None:
    with pytest.raises(ConfChangeError):
        check_conf_state(state)


def may_decide(state: ConfState, members: set[int]) -> bool:
    votes = dict.fromkeys(members, True)
    return joint_vote(state.voters, state.voters_outgoing, votes) is VoteResult.WON


@given(st.lists(changes, max_size=8))
def test_quorums_of_neighbouring_configurations_intersect(steps: list[ConfChange]) -> None:
    """What makes a change safe at all (thesis 4.1): no decision in one without a witness in the other."""
    state = ConfState(voters=(1, 2, 3))
    for step in steps:
        try:
            following = apply_change(state, step)
        except ConfChangeError:
            continue
        check_conf_state(following)
        everybody = {*state.voters, *state.voters_outgoing, *following.voters, *following.voters_outgoing}
        for number in range(2 ** len(everybody)):
            some = {one for at, one in enumerate(sorted(everybody)) if number >> at & 1}
            assert not (may_decide(state, some) and may_decide(following, everybody - some))
        state = following
