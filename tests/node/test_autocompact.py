"""Automatic compaction keeps what was asked for, and no more than a tenth of a period longer."""

from __future__ import annotations

from kvserver.node.autocompact import AutoCompactor


def test_periodic_keeps_a_whole_period_and_at_most_a_note_more() -> None:
    compactor = AutoCompactor(period_seconds=100.0)
    revision_at = {}
    compacted = []
    for second in range(1000):
        revision_at[second] = second * 7 + 2
        target = compactor.due(float(second), revision_at[second])
        if target:
            compacted.append((second, target))
    assert compacted
    for second, target in compacted:
        assert revision_at[max(0, second - 111)] <= target <= revision_at[second - 100]


def test_periodic_says_nothing_before_a_period_has_passed() -> None:
    compactor = AutoCompactor(period_seconds=60.0)
    assert [compactor.due(float(second), 50 + second) for second in range(60)] == [0] * 60


def test_revision_mode_looks_every_five_minutes_and_keeps_the_last_n() -> None:
    compactor = AutoCompactor(revisions=1000)
    answers = [(second, compactor.due(float(second), 2000 + second)) for second in range(0, 901, 100)]
    assert [(second, target) for second, target in answers if target] == [(300, 1300), (600, 1600), (900, 1900)]


def test_an_idle_store_is_not_compacted_again() -> None:
    compactor = AutoCompactor(revisions=10)
    targets = [compactor.due(second * 300.0, 500) for second in range(5)]
    assert targets == [0, 490, 0, 0, 0]


def test_off_means_never() -> None:
    compactor = AutoCompactor()
    assert not compactor.enabled
    assert [compactor.due(float(second * 1000), second) for second in range(9)] == [0] * 9


def test_a_new_leadership_begins_anew() -> None:
    compactor = AutoCompactor(period_seconds=50.0)
    for second in range(49):
        compactor.due(float(second), second)
    compactor.reset()
    assert [compactor.due(float(second), second) for second in range(49, 99)] == [0] * 50
