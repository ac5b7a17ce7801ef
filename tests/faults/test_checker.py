"""The checker itself: it accepts a correct history and finds each way to break one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from tests.faults.checker import (
    Answer,
    Call,
    Compare,
    Delete,
    Event,
    Get,
    HistoryError,
    KeyValue,
    Model,
    Put,
    Request,
    Revoke,
    check,
    check_watch,
)

History = tuple[list[Event], list[Call]]

KEYS = [b"a", b"b", b"c", b"d"]


def random_request(rng: Random, number: int) -> Request:
    """Any request; its values are its own."""
    value = b"value %d" % number
    key = rng.choice(KEYS)
    kind = rng.randrange(7)
    if kind < 2:
        return Request((Put(key, value, lease=rng.choice((0, 0, 7))),))
    if kind == 2:
        return Request((Delete(key, rng.choice((b"", b"d", b"\0"))),))
    if kind == 3:
        return Request((Get(b"a", b"\0"),))
    if kind == 4:
        return Request((Revoke(7),))
    compare = Compare(key, rng.choice(("version", "mod")), rng.randrange(4))
    return Request((Put(b"a", value), Put(b"d", value)), (compare,), (Delete(b"b"), Get(b"a", b"e")))


def correct_history(seed: int = 0, count: int = 200) -> History:
    """Four clients at once, each call at some moment between its beginning and its end, some without an answer."""
    rng = Random(seed)
    model = Model()
    log: list[Event] = []
    calls: list[Call] = []
    free = dict.fromkeys(range(4), 0.0)
    now = 0.0
    for number in range(count):
        client = min(free, key=lambda name: free[name])
        began = max(now - rng.random(), free[client])
        now = max(now, began) + rng.random() / 4
        call = Call(str(client), random_request(rng, number), began)
        free[client] = now + rng.random()
        calls.append(call)
        lost = rng.random() < 0.1
        if lost and rng.random() < 0.5:
            continue
        answer, events = model.run(call.request)
        log.extend(events)
        if not lost:
            call.answer, call.ended = answer, free[client]
    return log, calls


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_history_is_accepted(seed: int) -> None:
    log, calls = correct_history(seed)
    model = check(log, calls)
    assert model.revision == log[-1].revision
    assert sum(call.answer is None for call in calls) > 5


def a_put(calls: list[Call], nth: int = 5) -> Call:
    """Some acknowledged put."""
    puts = [call for call in calls if call.answer is not None and isinstance(call.request.success[0], Put)]
    return [call for call in puts if not call.request.compares][nth]


def without(log: list[Event], revision: int) -> list[Event]:
    """A log that never had this revision, numbered as if nothing were missing."""
    again = []
    for event in log:
        if event.revision != revision:
            number = event.revision - (event.revision > revision)
            after = replace(event.after, mod_revision=number) if event.after else None
            again.append(Event(event.key, number, after))
    return again


def lose_the_last_write(history: History) -> None:
    log, calls = history
    call = a_put(calls, -1)
    assert call.answer is not None
    del log[next(at for at, event in enumerate(log) if event.revision == call.answer.revision) :]


def lose_a_write_in_the_middle(history: History) -> None:
    log, calls = history
    call = a_put(calls)
    assert call.answer is not None
    log[:] = without(log, call.answer.revision)


def leave_a_gap(history: History) -> None:
    log, _ = history
    del log[10]


def apply_twice(history: History) -> None:
    log, _ = history
    kv = log[-1].after or KeyValue(b"a", b"", 1, 1, 1)
    again = replace(kv, mod_revision=log[-1].revision + 1, version=kv.version + 1)
    log.append(Event(kv.key, log[-1].revision + 1, again))


def tear_a_txn(history: History) -> None:
    log, _ = history
    both = next(at for at in range(1, len(log)) if log[at].revision == log[at - 1].revision and log[at].after)
    del log[both]


def wrong_version(history: History) -> None:
    log, _ = history
    at = next(at for at, event in enumerate(log) if event.after and event.after.version > 1)
    kv = log[at].after
    assert kv is not None
    log[at] = replace(log[at], after=replace(kv, version=1))


def forget_the_lease(history: History) -> None:
    log, _ = history
    at = next(at for at, event in enumerate(log) if event.after and event.after.lease)
    kv = log[at].after
    assert kv is not None
    log[at] = replace(log[at], after=replace(kv, lease=0))


def read_the_past(history: History) -> None:
    _, calls = history
    reads = [call for call in calls if call.answer and isinstance(call.request.success[0], Get)]
    first, last = reads[0], reads[-1]
    last.answer = first.answer


def read_half_a_txn(history: History) -> None:
    _, calls = history
    for call in calls:
        if call.answer and isinstance(call.request.success[0], Get):
            found = call.answer.results[0]
            if isinstance(found, tuple) and len(found) > 1:
                call.answer = replace(call.answer, results=(found[:-1],))
                return


def answer_one_revision_to_two(history: History) -> None:
    _, calls = history
    first, second = a_put(calls, 3), a_put(calls, 4)
    second.request, second.answer, second.began = first.request, first.answer, first.began


def take_the_wrong_branch(history: History) -> None:
    _, calls = history
    call = next(call for call in calls if call.answer and call.request.compares)
    assert call.answer is not None
    call.answer = replace(call.answer, succeeded=not call.answer.succeeded)


def see_a_write_before_it_began(history: History) -> None:
    _, calls = history
    call = a_put(calls)
    call.began = call.ended - 1e-9
    other = next(other for other in calls if other.answer and other.answer.revision > call.answer.revision)  # type: ignore[union-attr]
    other.began, other.ended = 0.0, call.began - 1e-9


def do_what_nobody_asked_for(history: History) -> None:
    log, _ = history
    number = log[-1].revision + 1
    log.append(Event(b"z", number, KeyValue(b"z", b"", number, number, 1)))


def acknowledge_what_was_not_done(history: History) -> None:
    _, calls = history
    call = a_put(calls)
    call.answer = Answer(1, True, (None,))


BREAKERS: list[Callable[[History], None]] = [
    lose_the_last_write,
    lose_a_write_in_the_middle,
    leave_a_gap,
    apply_twice,
    tear_a_txn,
    wrong_version,
    forget_the_lease,
    read_the_past,
    read_half_a_txn,
    answer_one_revision_to_two,
    take_the_wrong_branch,
    see_a_write_before_it_began,
    do_what_nobody_asked_for,
    acknowledge_what_was_not_done,
]


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda breaker: breaker.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_broken_history_is_refused(breaker: Callable[[History], None], seed: int) -> None:
    history = correct_history(seed)
    breaker(history)
    with pytest.raises(HistoryError):
        check(*history)


def test_a_lease_may_expire_only_where_that_is_expected() -> None:
    model = Model()
    put = Call("a", Request((Put(b"k", b"v", 9),)), 0.0, 1.0)
    put.answer, log = model.run(put.request)
    log += model.run(Request((Revoke(9),)))[1]
    assert check(log, [put], leases_expire=True).state == {}
    with pytest.raises(HistoryError):
        check(log, [put])


def responses(log: list[Event]) -> list[tuple[int, list[Event]]]:
    """One response a revision."""
    return [
        (revision, [event for event in log if event.revision == revision])
        for revision in sorted({event.revision for event in log})
    ]


def test_a_watch_that_equals_the_log_is_accepted() -> None:
    log, _ = correct_history()
    check_watch(log, responses(log))
    check_watch(log, [(12, []), *responses([event for event in log if event.revision > 12])], start=13)
    check_watch(log, responses([event for event in log if event.key == b"a"]), key=b"a", end=b"")


@pytest.mark.parametrize("damage", ["gap", "end", "double", "order", "torn", "value", "future"])
def test_a_watch_that_differs_is_refused(damage: str) -> None:
    log, _ = correct_history()
    got = responses(log)
    if damage == "gap":
        del got[7]
    elif damage == "end":
        del got[-1]
    elif damage == "double":
        got.insert(7, got[6])
    elif damage == "order":
        got[7], got[8] = got[8], got[7]
    elif damage == "torn":
        at = next(at for at, (_, events) in enumerate(got) if len(events) > 1)
        header, events = got[at]
        got[at : at + 1] = [(header, events[:1]), (header, events[1:])]
    elif damage == "value":
        at = next(at for at, (_, events) in enumerate(got) if events[0].after)
        kv = got[at][1][0].after
        assert kv is not None
        got[at][1][0] = replace(got[at][1][0], after=replace(kv, value=b"other"))
    else:
        got[5] = (got[5][0] - 1, got[5][1])
    with pytest.raises(HistoryError):
        check_watch(log, got)
