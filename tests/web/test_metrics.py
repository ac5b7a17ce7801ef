"""Metrics: the names of etcd's, and how values become text."""

from __future__ import annotations

import doctest

import pytest

from kvserver import metrics as metrics_module
from kvserver.metrics import DEFINITIONS, Histogram, Metrics
from kvserver.proto.rpc_pb2 import PutRequest
from kvserver.wire.client import GrpcConnection
from tests.web.support import serving


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(metrics_module).failed == 0


def lines_of(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def test_numbers_labels_and_histograms_become_text() -> None:
    histogram = Histogram((0.5, 1.0))
    for value in (0.1, 0.7, 5.0):
        histogram.observe(value)
    metrics = Metrics()
    metrics.add_source(
        lambda: {
            "etcd_mvcc_put_total": 5,
            "etcd_server_proposals_committed_total": 6,
            "etcd_server_health_success": 7,
            "grpc_server_started_total": {("unary", "etcdserverpb.KV", "Put"): 8},
            "etcd_disk_wal_fsync_duration_seconds": histogram,
            "kvserver_something_new": 9,
        }
    )
    lines = lines_of(metrics)
    assert "etcd_mvcc_put_total 5.0" in lines
    assert "# TYPE etcd_mvcc_put_total counter" in lines
    assert "# TYPE etcd_server_proposals_committed_total gauge" in lines
    assert "etcd_server_health_success 7.0" in lines
    labels = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    assert f"grpc_server_started_total{{{labels}}} 8.0" in lines
    assert 'etcd_disk_wal_fsync_duration_seconds_bucket{le="0.5"} 1.0' in lines
    assert 'etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 3.0' in lines
    assert "etcd_disk_wal_fsync_duration_seconds_count 3.0" in lines
    assert "etcd_disk_wal_fsync_duration_seconds_sum 5.8" in lines
    assert "kvserver_something_new 9.0" in lines
    assert 'etcd_server_version{server_version="3.5.1"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert any(line.startswith("os_fd_used ") for line in lines)


def test_sources_are_asked_at_each_scrape_and_the_later_one_counts() -> None:
    metrics = Metrics()
    number = iter(range(10))
    metrics.add_source(lambda: {"etcd_mvcc_put_total": 100})
    metrics.add_source(lambda: {"etcd_mvcc_put_total": next(number)})
    assert "etcd_mvcc_put_total 0.0" in lines_of(metrics)
    assert "etcd_mvcc_put_total 1.0" in lines_of(metrics)


def test_definitions_are_complete() -> None:
    for name, definition in DEFINITIONS.items():
        assert definition.kind in ("counter", "gauge", "histogram"), name
        assert definition.help, name
        assert definition.kind != "counter" or name.endswith("_total"), name


@pytest.mark.asyncio
async def test_what_the_client_port_counts() -> None:
    async with serving() as served:
        connection = await GrpcConnection.connect("127.0.0.1", served.port)
        await connection.unary(b"/etcdserverpb.KV/Put", PutRequest(key=b"k").SerializeToString(), timeout_seconds=5)
        client = await served.connect()
        text = (await client.request("GET", "/metrics")).body.decode()
        put = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
        assert f'grpc_server_handled_total{{grpc_code="OK",{put}}} 1.0' in text
        assert f"grpc_server_started_total{{{put}}} 1.0" in text
        assert 'kvserver_client_connections{protocol="grpc"} 1.0' in text
        assert 'kvserver_client_connections{protocol="http"} 1.0' in text
        assert "etcd_network_client_grpc_received_bytes_total " in text
        assert 'etcd_server_id{server_id="8e9e05c52164694d"} 1.0' in text
        assert "etcd_server_health_success 0.0" in text
        assert (await client.request("GET", "/metrics")).headers["content-type"].startswith("text/plain; version=0.0.4")
        await client.close()
        await connection.close()
