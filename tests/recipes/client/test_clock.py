from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recipes.client.clock import LeaseClock, SessionState


def test_suspended_after_half_the_ttl_and_lost_at_the_deadline() -> None:
    clock = LeaseClock(10, sent_at=100)
    assert clock.state(104.9) is SessionState.CONNECTED
    assert clock.state(105) is SessionState.SUSPENDED
    assert clock.state(109.9) is SessionState.SUSPENDED
    assert clock.state(110) is SessionState.LOST
    assert "10.0 s" in (clock.reason or "")


def test_the_deadline_counts_from_the_sending_time_of_the_acknowledged_renewal() -> None:
    clock = LeaseClock(10, sent_at=100)
    assert clock.acknowledge(103, 10, now=109) is SessionState.SUSPENDED
    assert clock.deadline == 113
    assert clock.acknowledge(108, 10, now=109) is SessionState.CONNECTED


def test_lost_is_final_even_if_the_server_acknowledges_later() -> None:
    clock = LeaseClock(10, sent_at=100)
    assert clock.acknowledge(109, 10, now=110) is SessionState.LOST
    assert clock.state(110) is SessionState.LOST
    assert clock.acknowledge(111, 10, now=111) is SessionState.LOST


def test_the_first_reason_for_a_loss_stays() -> None:
    clock = LeaseClock(10, sent_at=100)
    assert clock.lose("revoked")
    assert not clock.lose("closed")
    assert clock.reason == "revoked"


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=30))
def test_never_believed_beyond_ttl_after_the_last_acknowledged_sending(steps: list[tuple[float, float]]) -> None:
    clock = LeaseClock(6, sent_at=0)
    present, acknowledged, lost = 0.0, 0.0, False
    for wait, delay in steps:
        sent_at = present = present + wait
        present += delay
        state = clock.acknowledge(sent_at, 6, present)
        lost = lost or present >= acknowledged + 6
        if not lost:
            acknowledged = sent_at
            lost = present >= acknowledged + 6
        assert (state is SessionState.LOST) == lost
