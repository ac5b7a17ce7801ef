"""Judges a recorded history by revision.

The server numbers its writes, so nobody has to search for an order: the committed log (a watch from revision 1) says
what happened, and a model that is written independently of the server says what each call must have answered at its
revision. :func:`check` replays the log through the model and demands that

- revisions follow one another without a gap, and every event's create and mod revision and version are the model's;
- every revision was made by exactly one call: its events are the ones the model makes of that call at that state, all
  of them (atomic), and every acknowledged write has its revision in the log (durable);
- every answer equals the model's at the answer's revision; calls that wrote nothing count as reads;
- in real time revisions never go back: an answer's revision is at least the largest that was answered before the call
  began, and larger if the call wrote;
- a write of unknown outcome (its connection broke) is either wholly in the log, any time after it began, or not at all.

:func:`check_watch` demands of a watcher's stream that it equals the log: in order, without gap, without duplicate, no
revision split over two responses, however often it was resumed.

What must not live here: anything of the server's packages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class HistoryError(AssertionError):
    """The history breaks a promise."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key's state."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A change: ``before`` and after; a deletion has no ``after`` but the key and the revision."""

    key: bytes
    revision: int
    after: KeyValue | None


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete ``[key, end)``, or one key."""

    key: bytes
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class Get:
    """Read ``[key, end)``, or one key."""

    key: bytes
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class Revoke:
    """End a lease: delete the keys that hang on it."""

    lease: int


Operation = Put | Delete | Get | Revoke


@dataclass(frozen=True, slots=True)
class Compare:
    """A key's version, mod revision or value equals."""

    key: bytes
    target: str  # "version", "mod" or "value"
    expected: int | bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A txn; a call that is none is a txn of one operation without a compare."""

    success: tuple[Operation, ...]
    compares: tuple[Compare, ...] = ()
    failure: tuple[Operation, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it may write."""
        return any(not isinstance(operation, Get) for operation in (*self.success, *self.failure))


# What an operation answers: a delete how many keys it deleted, a get what it found, the others nothing.
Result = None | int | tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: the header's revision, the branch taken, the operations' results."""

    revision: int
    succeeded: bool
    results: tuple[Result, ...]


@dataclass(slots=True)
class Call:
    """A call of one client; without an answer its outcome is unknown."""

    client: str
    request: Request
    began: float
    ended: float = float("inf")
    answer: Answer | None = None

    def __str__(self) -> str:
        return f"{self.client} at {self.began:.6f}..{self.ended:.6f}: {self.request} -> {self.answer}"


@dataclass(slots=True)
class Model:
    """A store in its simplest form."""

    revision: int = 1
    state: dict[bytes, KeyValue] = field(default_factory=dict)

    def find(self, key: bytes, end: bytes) -> tuple[KeyValue, ...]:
        """The keys of a range, in order."""
        if not end:
            return (self.state[key],) if key in self.state else ()
        return tuple(self.state[name] for name in sorted(self.state) if name >= key and (end == b"\0" or name < end))

    def holds(self, compare: Compare) -> bool:
        """Whether a compare holds."""
        found = self.state.get(compare.key)
        if compare.target == "value":
            return found is not None and found.value == compare.expected
        if compare.target == "version":
            return (found.version if found else 0) == compare.expected
        return (found.mod_revision if found else 0) == compare.expected

    def run(self, request: Request) -> tuple[Answer, list[Event]]:
        """Carry a request out."""
        succeeded = all(self.holds(compare) for compare in request.compares)
        revision = self.revision + 1
        events: list[Event] = []
        results: list[Result] = []
        for operation in request.success if succeeded else request.failure:
            match operation:
                case Get(key, end):
                    results.append(self.find(key, end))
                case Put(key, value, lease):
                    old = self.state.get(key)
                    new = KeyValue(
                        key,
                        value,
                        old.create_revision if old else revision,
                        revision,
                        old.version + 1 if old else 1,
                        lease,
                    )
                    self.state[key] = new
                    events.append(Event(key, revision, new))
                    results.append(None)
                case Delete() | Revoke():
                    if isinstance(operation, Delete):
                        gone = self.find(operation.key, operation.end)
                    else:
                        gone = tuple(kv for _, kv in sorted(self.state.items()) if kv.lease == operation.lease)
                    for kv in gone:
                        del self.state[kv.key]
                        events.append(Event(kv.key, revision, None))
                    results.append(len(gone) if isinstance(operation, Delete) else None)
        if events:
            self.revision = revision
        return Answer(self.revision, succeeded, tuple(results)), events

    def fork(self) -> Model:
        """A copy."""
        return Model(self.revision, dict(self.state))


def check(log: Sequence[Event], calls: Sequence[Call], *, leases_expire: bool = False) -> Model:
    """Judge a history.

    Args:
        log: all events, in order.
        calls: all calls, in any order.
        leases_expire: whether the server may revoke leases by itself.

    Returns:
        The model at the end of the log.

    Raises:
        HistoryError: it breaks a promise; says which call or revision.
    """
    _check_time(calls)
    writers: dict[int, list[Call]] = {}
    readers: dict[int, list[Call]] = {}
    unknown = sorted((call for call in calls if call.answer is None and call.request.writes), key=lambda c: c.began)
    for call in calls:
        if call.answer is not None:
            (writers if call.request.writes else readers).setdefault(call.answer.revision, []).append(call)
    # No call can have made a revision that was seen before the call began.
    seen_at: dict[int, float] = {}
    for call in calls:
        if call.answer is not None:
            revision = call.answer.revision
            seen_at[revision] = min(seen_at.get(revision, float("inf")), call.ended)
    earliest = float("inf")
    last = log[-1].revision if log else 1
    latest_start: dict[int, float] = {}
    for revision in range(max([last, *seen_at]), 1, -1):
        earliest = min(earliest, seen_at.get(revision, float("inf")))
        latest_start[revision] = earliest
    beyond = [call for revision, found in {**readers, **writers}.items() if revision > last for call in found]
    if beyond:
        raise HistoryError(f"lost: the log ends at revision {last}, but there is {beyond[0]}")

    model = Model()
    _check_answers(model, readers.get(1, []), writers.get(1, []))
    for revision, events in _by_revision(log):
        if revision != model.revision + 1:
            raise HistoryError(f"the log goes from revision {model.revision} to {revision}")
        _make_revision(model, revision, events, writers.get(revision, []), unknown, latest_start, leases_expire)
        made = [call for call in writers.get(revision, []) if call.answer is not None]
        _check_answers(model, readers.get(revision, []), made)
    return model


def _check_time(calls: Sequence[Call]) -> None:
    """Sweep by time: what was answered before a call began bounds its revision from below."""
    ends = sorted(
        ((call.ended, call.answer.revision) for call in calls if call.answer is not None), key=lambda end: end[0]
    )
    position = highest = 0
    for call in sorted(calls, key=lambda call: call.began):
        while position < len(ends) and ends[position][0] < call.began:
            highest = max(highest, ends[position][1])
            position += 1
        if call.answer is not None and call.answer.revision < highest:
            raise HistoryError(f"revisions went back: {highest} was answered before {call}")


def _by_revision(log: Sequence[Event]) -> Iterable[tuple[int, list[Event]]]:
    group: list[Event] = []
    for event in log:
        if group and event.revision != group[0].revision:
            yield group[0].revision, group
            group = []
        group.append(event)
    if group:
        yield group[0].revision, group


def _make_revision(
    model: Model,
    revision: int,
    events: list[Event],
    answered: list[Call],
    unknown: list[Call],
    latest_start: dict[int, float],
    leases_expire: bool,
) -> None:
    """Find the one call that made this revision and carry it out on the model."""
    makers = []
    for call in answered:
        trial = model.fork()
        answer, made = trial.run(call.request)
        if made and answer.revision == revision and made == events and answer == call.answer:
            makers.append((call, trial))
    # Of several that could have been it, the others must have found nothing left to do; their answers tell.
    makers.sort(key=lambda maker: maker[0].began)
    if makers and makers[0][0].began > latest_start[revision]:
        raise HistoryError(f"revision {revision} was seen before its writer began: {makers[0][0]}")
    if makers:
        model.revision, model.state = makers[0][1].revision, makers[0][1].state
        answered.remove(makers[0][0])
        return
    for call in unknown:
        if call.began > latest_start[revision]:
            break
        trial = model.fork()
        if trial.run(call.request)[1] == events:
            unknown.remove(call)
            model.revision, model.state = trial.revision, trial.state
            return
    if leases_expire and all(event.after is None for event in events):
        leases = {model.state[event.key].lease for event in events if event.key in model.state}
        if len(leases) == 1 and 0 not in leases:
            trial = model.fork()
            if trial.run(Request((Revoke(leases.pop()),)))[1] == events:
                model.revision, model.state = trial.revision, trial.state
                return
    claims = "; ".join(str(call) for call in answered) or "nobody was answered with it"
    raise HistoryError(f"no call explains revision {revision}: {events}; {claims}")


def _check_answers(model: Model, readers: list[Call], writers: list[Call]) -> None:
    """Calls that wrote nothing answered the state at their revision."""
    for call in (*readers, *writers):
        answer, made = model.fork().run(call.request)
        if made:
            raise HistoryError(
                f"lost: the log at revision {model.revision} does not hold what was acknowledged: {call}"
            )
        if answer != call.answer:
            raise HistoryError(f"at revision {model.revision} the answer is {answer}, but there is {call}")


def check_watch(
    log: Sequence[Event],
    responses: Sequence[tuple[int, Sequence[Event]]],
    *,
    start: int = 1,
    key: bytes = b"",
    end: bytes = b"\0",
) -> None:
    """Judge what a watcher got, over all its resumptions, from revision ``start`` to the end of the log.

    Args:
        log: all events, in order.
        responses: (header revision, events) of each response.
        start: the first revision it asked for.
        key: start of the watched range.
        end: its end; one zero byte means no end.

    Raises:
        HistoryError: something is missing, double, out of order, wrong, or torn apart.
    """
    expected = [
        event
        for event in log
        if event.revision >= start
        and (event.key == key if not end else event.key >= key and (end == b"\0" or event.key < end))
    ]
    position = 0
    last = 0
    for header, events in responses:
        for event in events:
            if position >= len(expected) or event != expected[position]:
                wanted = expected[position] if position < len(expected) else "nothing more"
                raise HistoryError(f"a watcher got {event} where the log has {wanted}")
            position += 1
        if events:
            if events[0].revision == last:
                raise HistoryError(f"revision {last} came to a watcher in two parts")
            last = events[-1].revision
            if header < last:
                raise HistoryError(f"a response of revision {header} holds an event of revision {last}")
    if position != len(expected):
        raise HistoryError(f"a watcher did not get {expected[position]} and {len(expected) - position - 1} more")
