"""Puts one member together: from a configuration and a data directory to an engine that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from kvserver import limits
from kvserver.config import Config
from kvserver.errors import ConfigError
from kvserver.node.answers import HeaderEncoder
from kvserver.node.engine import Engine, EngineSettings
from kvserver.node.machine import StateMachine
from kvserver.node.membership import Member, cluster_id_of, member_id_of
from kvserver.node.recovery import DataDir, Identity, open_data_dir
from kvserver.raft import Config as RaftConfig
from kvserver.raft import InitialState, RawNode, Snapshot
from kvserver.runtime import Rng
from kvserver.storage import FileSystem
from kvserver.version import ETCD_CLUSTER_VERSION

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Assembly:
    """The parts of one member."""

    engine: Engine
    data_dir: DataDir


def assemble(config: Config, fs: FileSystem, rng: Rng, wake: Callable[[], None]) -> Assembly:
    """Open or create the data directory and build the member that it holds.

    Args:
        config: the configuration.
        fs: the file system.
        rng: randomness for election timeouts.
        wake: called when the engine wants a turn.

    Raises:
        StartupError: the configuration and the directory do not fit, or the directory cannot be used.
    """
    members = [
        Member(member_id_of(urls, config.initial_cluster_token), tuple(sorted(urls)), name)
        for name, urls in config.initial_members.items()
    ]
    own = next((member for member in members if member.name == config.name), None)
    if own is None:
        raise ConfigError(
            f'--initial-cluster={config.initial_cluster}: has no member named "{config.name}" (--name); add it'
        )
    fresh = Identity(cluster_id_of(member.member_id for member in members), own.member_id)
    data_dir = open_data_dir(fs, config.data_path, config.wal_path, fresh)
    try:
        return Assembly(_build_engine(config, data_dir, members, rng, wake), data_dir)
    except BaseException:
        data_dir.wal.close()
        data_dir.lock.release()
        raise


def _build_engine(
    config: Config,
    data_dir: DataDir,
    members: list[Member],
    rng: Rng,
    wake: Callable[[], None],
) -> Engine:
    identity = data_dir.identity
    heartbeat_ms = config.heartbeat_interval
    election_ticks = max(1, config.election_timeout // heartbeat_ms)
    ticks_per_second = 1000 / heartbeat_ms
    headers = HeaderEncoder(identity.cluster_id, identity.member_id)
    machine = StateMachine(
        headers,
        lease_ttl_min_seconds=ceil(3 * config.election_timeout / 2 / 1000),
        progress_interval_ticks=max(1, round(config.watch_progress_notify_interval * ticks_per_second)),
    )
    if data_dir.snapshot is not None:
        machine.restore(data_dir.snapshot.chunks, str(config.data_path))
        log.info("restored the state at index %d", machine.applied_index)
    raft = RawNode(
        RaftConfig(
            id=identity.member_id,
            rng=rng,
            election_ticks=election_ticks,
            pre_vote=config.pre_vote,
            logger=log,
        ),
        InitialState(
            snapshot=Snapshot(machine.applied_index, machine.applied_term, machine.conf_state),
            entries=data_dir.entries,
            hard_state=data_dir.hard_state,
        ),
    )
    data_dir.entries = []
    if not raft.last_index() and not raft.term:
        # Also a member that was killed between creating its log and the first write to it.
        raft.bootstrap(
            [
                (member.member_id, Member(member.member_id, member.peer_urls).message().SerializeToString())
                for member in sorted(members, key=lambda member: member.member_id)
            ]
        )
    headers.set_term(raft.term)
    settings = EngineSettings(
        name=config.name,
        cluster_version=ETCD_CLUSTER_VERSION,
        snapshot_count=config.snapshot_count,
        snapshot_catchup_entries=limits.SNAPSHOT_CATCHUP_ENTRIES,
        request_timeout_ticks=ceil(config.request_timeout_seconds * ticks_per_second),
        lease_revokes_per_tick=max(1, round(limits.LEASE_REVOKES_PER_SECOND / ticks_per_second)),
        election_timeout_seconds=config.election_timeout / 1000,
        quota_bytes=config.quota_bytes,
        auto_compaction_period_seconds=config.auto_compaction_period_seconds,
        auto_compaction_revisions=config.auto_compaction_revisions,
    )
    return Engine(raft, machine, settings, member_id=identity.member_id, wake=wake)
