"""The benchmark tool itself: what it reads, what it computes, and that its generators count right."""

from __future__ import annotations

import asyncio
import doctest
import struct

import pytest

from tests.bench import lean, load, report
from tests.bench.cases import SIX, Metric, Settings, all_cases
from tests.bench.generators import percentile
from tests.bench.report import Row
from tests.support.processes import NodeProcess

H2LOAD = "finished in 2.00s, 656.50 req/s, 61.55KB/s\nrequests: 1313 total, 1313 started, 1313 done, {}, 0 timeout\n"


def test_h2load_with_failed_requests_gives_no_figure() -> None:
    assert load.parse_h2load(H2LOAD.format("1313 succeeded, 0 failed, 0 errored")) == (656.5, 1313)
    with pytest.raises(load.LoadError, match="1 failed"):
        load.parse_h2load(H2LOAD.format("1312 succeeded, 1 failed, 0 errored"))
    with pytest.raises(load.LoadError, match="no summary"):
        load.parse_h2load("")


def test_wrk_with_failed_requests_gives_no_figure() -> None:
    assert load.parse_wrk("Requests/sec:   8500.25\n") == 8500.25
    for complaint in ("Non-2xx or 3xx responses: 3", "Socket errors: connect 0, read 1, write 0, timeout 0"):
        with pytest.raises(load.LoadError):
            load.parse_wrk(f"{complaint}\nRequests/sec:   8500.25\n")


def row(name: str, ours: list[float], theirs: list[float], *, higher_is_better: bool = True) -> Row:
    return Row(Metric(name, higher_is_better=higher_is_better), "", {"kvserver": ours, "etcd": theirs})


def test_a_ratio_is_of_medians_and_above_one_when_ours_is_better() -> None:
    assert row("rate", [10, 30, 20], [5, 500, 10]).ratio == 2.0
    assert row("latency", [10.0], [5.0], higher_is_better=False).ratio == 0.5
    assert row("only ours", [10.0], []).ratio is None
    assert row("spread", [10.0, 12.0, 10.0], [5.0]).spread == pytest.approx(0.2)


def test_the_verdict_needs_all_six() -> None:
    rows = [row(case.metrics[0].name, [2.0], [1.0]) for case in SIX[:5]]
    assert report.verdict(rows) == {}
    rows.append(row(SIX[5].metrics[0].name, [128.0], [1.0]))
    found = report.verdict(rows)
    assert found["geometric_mean_of_six"] == pytest.approx(4.0)
    assert found["smallest_of_six"] == 2.0
    assert "4.00" in report.summary(rows)


def test_the_table_is_aligned_and_names_of_metrics_are_unique() -> None:
    text = report.table([row("a", [1234.0], [1.0]), row("a longer name", [1.0], [])])
    assert text.splitlines()[2].split() == ["a", "/s", "1,234", "1", "1234.00", "0%"]
    assert text.splitlines()[3].split() == ["a", "longer", "name", "/s", "1", "-", "-", "0%"]
    names = [metric.name for case in all_cases(Settings(1, None)) for metric in case.metrics]  # type: ignore[arg-type]
    assert len(names) == len(set(names))


def test_percentiles_are_weighted() -> None:
    assert percentile([(5.0, 1), (1.0, 98), (9.0, 1)], 0.5) == 1.0
    assert percentile([(5.0, 1), (1.0, 98), (9.0, 1)], 0.99) == 5.0
    assert percentile([(5.0, 1), (1.0, 98), (9.0, 1)], 1.0) == 9.0


def test_the_examples_in_docstrings_hold() -> None:
    for module in (load, report):
        assert doctest.testmod(module).failed == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
async def test_the_lean_client_counts_messages_however_they_are_split(step: int) -> None:
    counted: dict[int, int] = {}
    ended = []
    connection = lean.LeanConnection("host")
    connection.on_messages = lambda stream_id, count: counted.update({stream_id: counted.get(stream_id, 0) + count})
    connection.on_end = ended.append
    one = lean.message(b"x" * 10) + lean.message(b"") + lean.message(b"y" * 300)
    frames = [lean.frame(lean.SETTINGS, 0, 0, b""), lean.frame(lean.HEADERS, lean.END_HEADERS, 1, b"\x88")]
    for at in range(0, len(one), 11):
        frames.append(lean.frame(lean.DATA, 0, 1, one[at : at + 11]))
        frames.append(lean.frame(lean.DATA, 0, 3, lean.message(b"z")))
    frames.append(lean.frame(lean.HEADERS, lean.END_HEADERS | lean.END_STREAM, 1, b""))
    stream = b"".join(frames)
    for at in range(0, len(stream), step):
        connection.data_received(stream[at : at + step])
    assert counted == {1: 3, 3: len(range(0, len(one), 11))}
    assert ended == [1]


@pytest.mark.asyncio
async def test_the_lean_client_keeps_within_the_servers_window() -> None:
    connection = lean.LeanConnection("host")
    sent: list[bytes] = []
    connection._out = sent
    for _ in range(4):
        connection.call("/path", b"x" * 20_000)
    assert sum(len(piece) > 20_000 for piece in sent) == 3
    connection.data_received(lean.frame(lean.WINDOW_UPDATE, 0, 0, struct.pack(">I", 20_000)))
    assert sum(len(piece) > 20_000 for piece in sent) == 4
    await asyncio.sleep(0)


def test_the_generators_run_against_a_node() -> None:
    with NodeProcess() as node:
        done = load.generator(load.generator_command(node.endpoint, "load", keys=300, value_bytes=64))
        assert done["rate"] > 0
        with load.probing(node.endpoint) as latencies:
            done = load.generator(load.generator_command(node.endpoint, "watch", watchers=200, seconds=0.2))
        assert done["events"] >= 1
        assert done["rate"] * 0.2 >= 200
        assert 0 < latencies["p50"] <= latencies["max"]
        done = load.generator(load.generator_command(node.endpoint, "keepalive", seconds=0.2))
        assert done["rate"] > 100
