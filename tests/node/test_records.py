"""The node's log records: what is encoded comes back, what is not ours is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver import limits
from kvserver.node import records
from kvserver.raft import Entry, HardState


@st.composite
def batches(draw: st.DrawFn) -> list[Entry]:
    index = draw(st.integers(1, 2**40))
    term = draw(st.integers(1, 2**30))
    batch = []
    for _ in range(draw(st.integers(1, 30))):
        term += draw(st.sampled_from([0, 0, 0, 1]))
        batch.append(Entry(term, index, draw(st.sampled_from([0, 0, 0, 1])), draw(st.binary(max_size=40))))
        index += 1
    return batch


def fields(entries: list[Entry]) -> list[tuple[int, int, int, bytes]]:
    return [(entry.term, entry.index, entry.type, entry.data) for entry in entries]


@given(batches())
def test_entries_come_back(batch: list[Entry]) -> None:
    decoded = [entry for payload in records.encode_entries(batch) for entry in records.decode_entries(payload)]
    assert fields(decoded) == fields(batch)


@given(batches(), st.data())
def test_a_shortened_record_is_refused(batch: list[Entry], data: st.DataObject) -> None:
    payload = records.encode_entries(batch)[0]
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(records.RecordError):
        records.decode_entries(payload[:cut])


@given(batches())
def test_the_span_is_that_of_the_entries(batch: list[Entry]) -> None:
    for payload in records.encode_entries(batch):
        decoded = records.decode_entries(payload)
        assert records.entries_span(payload) == (decoded[0].index, decoded[-1].index)


def test_hard_state_and_marker_come_back_and_refuse_other_lengths() -> None:
    state = HardState(3, 2**63 + 5, 99)
    assert records.decode_hard_state(records.encode_hard_state(state)) == state
    assert records.decode_marker(records.encode_marker(12, 3)) == (12, 3)
    for decode in (records.decode_hard_state, records.decode_marker):
        with pytest.raises(records.RecordError, match="expected"):
            decode(b"short")


def test_a_batch_larger_than_a_record_becomes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENTRIES_RECORD_BYTES_MAX", 1000)
    batch = [Entry(3, index, 0, bytes([index]) * (900 if index == 7 else 300)) for index in range(1, 14)]
    batch.append(Entry(3, 14, 0, bytes(2000)))
    payloads = records.encode_entries(batch)
    assert fields([entry for payload in payloads for entry in records.decode_entries(payload)]) == fields(batch)
    assert all(len(payload) < 1100 or len(records.decode_entries(payload)) == 1 for payload in payloads)
