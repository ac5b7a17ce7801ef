"""Real processes, ended in every way while clients write."""

from __future__ import annotations

import sys

import pytest

from kvserver.node.crash_points import NAMES, CrashPoints
from tests.faults.campaign import Campaign
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
