"""Real processes, ended in every way while clients write."""

from __future__ import annotations

import sys
import time

import pytest

from kvserver.node.crash_points import NAMES, CrashPoints
from kvserver.proto.rpc_pb2 import LeaseGrantRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest
from tests.faults.campaign import Campaign
from tests.faults.checker import Event
from tests.faults.client import Api, Watcher
from tests.support.processes import NodeProcess


class ArmedNode(NodeProcess):
    """A node that dies at the crash point named in its environment."""

    def command(self) -> list[str]:
        """Answer the command line."""
        arguments = super().command()[3:]
        return [sys.executable, "-m", "tests.faults.armed", *arguments]


def test_kill_9_under_writers_loses_nothing_acknowledged() -> None:
    with Campaign(NodeProcess(args=["--snapshot-count=300"]), seed=1) as campaign:
        for _ in range(3):
            done = campaign.kill_round(acknowledged_min=250)
            assert done.acknowledged >= 250
        assert sum(done.unknown for done in campaign.rounds) > 0
        assert all(watcher.resumptions >= 3 for watcher in campaign.watchers)


def test_a_node_that_dies_at_any_crash_point_comes_back_with_everything_acknowledged() -> None:
    with Campaign(ArmedNode(args=["--snapshot-count=50"]), seed=2) as campaign:
        names = sorted(NAMES, key=lambda name: "snapshot" not in name)
        campaign.crash_rounds([f"{name}:{1 if 'snapshot' in name else 20 + at}" for at, name in enumerate(names)])
        assert len(campaign.rounds) == len(NAMES)


def test_sigterm_under_load_is_a_clean_stop() -> None:
    with Campaign(NodeProcess(), seed=3) as campaign:
        done = campaign.stop_round(acknowledged_min=200)
        assert done.acknowledged >= 200
        assert "Traceback" not in campaign.node.log_path.read_text()


def test_an_unknown_crash_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no crash point"):
        CrashPoints("after_lunch")


def test_a_lease_survives_kill_9_gets_its_time_again_and_then_ends_with_its_key() -> None:
    node = NodeProcess()
    watcher = None
    try:
        node.start()
        api = Api(node.endpoint)
        ttl = api.lease_grant(LeaseGrantRequest(ID=7, TTL=2)).TTL
        api.put(PutRequest(key=b"leased", value=b"x", lease=7))
        watcher = Watcher(node.endpoint)
        watcher.start()
        watcher.wait_for(2)
        node.kill()
        killed = time.monotonic()
        api.close()
        node.start()
        api = Api(node.endpoint)
        assert list(api.lease_time_to_live(LeaseTimeToLiveRequest(ID=7, keys=True)).keys) == [b"leased"]
        watcher.wait_for(3)
        assert time.monotonic() - killed >= ttl, "it ended before its time"
        assert watcher.responses[-1] == (3, [Event(b"leased", 3, None)])
        assert not api.lease_leases(LeaseLeasesRequest()).leases
        api.close()
    finally:
        if watcher is not None:
            watcher.close()
        node.close()
