"""Coordination recipes for Python programs: sessions, locks, elections, service discovery, topics, live configuration.

They run on any etcd v3 cluster: a kvserver node or genuine etcd. Everything an application needs is exported here; each
recipe has a module of its own, loaded when it is first used. ::

    from recipes import Client, Lock, Put

    async with Client("127.0.0.1:2379") as kv:
        async with Lock(kv, "jobs/nightly", ttl=10) as held:
            await kv.txn(when=[held.guard()], then=[Put("result", "done")])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.balancing import LeastOutstanding, RoundRobin, Strategy, WeightedRandom
    from recipes.client.client import Client
    from recipes.client.clock import SessionState
    from recipes.client.txn import Compare, CreateRevision, Delete, Get, Lease, ModRevision, Put, Txn, Value, Version
    from recipes.client.types import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult, WatchEvent
    from recipes.client.watch import Watcher
    from recipes.config import HotConfig
    from recipes.discovery import Discovery, InstanceChange
    from recipes.election import Election, Leader, Leadership
    from recipes.errors import (
        AcquireTimeoutError,
        ClientError,
        CompactedError,
        ConfigConflictError,
        ConfigInvalidError,
        DeadlineExceededError,
        LeaseNotFoundError,
        NoInstanceError,
        NotHeldError,
        NotLeaderError,
        OutcomeUnknownError,
        RecipeError,
        SessionLostError,
        UnavailableError,
    )
    from recipes.instance import Instance, Status
    from recipes.lock import HeldLock, Lock
    from recipes.registry import Registration, Registry
    from recipes.session import Session
    from recipes.topic import Message, Resync, Subscriber, Topic

__all__ = [
    "AcquireTimeoutError",
    "Client",
    "ClientError",
    "CompactedError",
    "Compare",
    "ConfigConflictError",
    "ConfigInvalidError",
    "CreateRevision",
    "DeadlineExceededError",
    "Delete",
    "DeleteResult",
    "Discovery",
    "Election",
    "Get",
    "HeldLock",
    "HotConfig",
    "Instance",
    "InstanceChange",
    "KeyValue",
    "Leader",
    "Leadership",
    "Lease",
    "LeaseNotFoundError",
    "LeastOutstanding",
    "Lock",
    "Message",
    "ModRevision",
    "NoInstanceError",
    "NotHeldError",
    "NotLeaderError",
    "OutcomeUnknownError",
    "Put",
    "PutResult",
    "RangeResult",
    "RecipeError",
    "Registration",
    "Registry",
    "Resync",
    "RoundRobin",
    "Session",
    "SessionLostError",
    "SessionState",
    "Status",
    "Strategy",
    "Subscriber",
    "Topic",
    "Txn",
    "TxnResult",
    "UnavailableError",
    "Value",
    "Version",
    "WatchEvent",
    "Watcher",
    "WeightedRandom",
]

_MODULES = {
    "AcquireTimeoutError": "recipes.errors",
    "Client": "recipes.client.client",
    "ClientError": "recipes.errors",
    "CompactedError": "recipes.errors",
    "Compare": "recipes.client.txn",
    "ConfigConflictError": "recipes.errors",
    "ConfigInvalidError": "recipes.errors",
    "CreateRevision": "recipes.client.txn",
    "DeadlineExceededError": "recipes.errors",
    "Delete": "recipes.client.txn",
    "DeleteResult": "recipes.client.types",
    "Discovery": "recipes.discovery",
    "Election": "recipes.election",
    "Get": "recipes.client.txn",
    "HeldLock": "recipes.lock",
    "HotConfig": "recipes.config",
    "Instance": "recipes.instance",
    "InstanceChange": "recipes.discovery",
    "KeyValue": "recipes.client.types",
    "Leader": "recipes.election",
    "Leadership": "recipes.election",
    "Lease": "recipes.client.txn",
    "LeaseNotFoundError": "recipes.errors",
    "LeastOutstanding": "recipes.balancing",
    "Lock": "recipes.lock",
    "Message": "recipes.topic",
    "ModRevision": "recipes.client.txn",
    "NoInstanceError": "recipes.errors",
    "NotHeldError": "recipes.errors",
    "NotLeaderError": "recipes.errors",
    "OutcomeUnknownError": "recipes.errors",
    "Put": "recipes.client.txn",
    "PutResult": "recipes.client.types",
    "RangeResult": "recipes.client.types",
    "RecipeError": "recipes.errors",
    "Registration": "recipes.registry",
    "Registry": "recipes.registry",
    "Resync": "recipes.topic",
    "RoundRobin": "recipes.balancing",
    "Session": "recipes.session",
    "SessionLostError": "recipes.errors",
    "SessionState": "recipes.client.clock",
    "Status": "recipes.instance",
    "Strategy": "recipes.balancing",
    "Subscriber": "recipes.topic",
    "Topic": "recipes.topic",
    "Txn": "recipes.client.txn",
    "TxnResult": "recipes.client.types",
    "UnavailableError": "recipes.errors",
    "Value": "recipes.client.txn",
    "Version": "recipes.client.txn",
    "WatchEvent": "recipes.client.types",
    "Watcher": "recipes.client.watch",
    "WeightedRandom": "recipes.balancing",
}
"""Where each name is: ``kvctl`` starts fast because it loads the client alone."""


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
