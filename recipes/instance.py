"""The record of a service instance, and how it is written.

Key: ``services/<service>/<instance id>``. Value, JSON: ``address`` (text), ``metadata`` (an object of texts),
``weight`` (a number above 0), ``tags`` (a list of texts), ``version`` (text), ``status`` (``up``, ``draining`` or
``down``). Readers ignore fields they do not know, and take the defaults for those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import orjson

ROOT = "services/"
"""What the keys of all registrations begin with."""


class Status(StrEnum):
    """Whether an instance wants calls."""

    UP = "up"
    DRAINING = "draining"
    """It finishes what it has and wants nothing new."""
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service.

    Attributes:
        service: The service's name.
        id: The instance's id, unique within the service.
        address: Where it is, for example ``10.0.0.5:8443``.
        metadata: Texts about it.
        weight: Its share of calls, relative to the others.
        tags: Words to choose it by.
        version: The version of its software.
        status: Whether it wants calls.
    """

    service: str
    id: str
    address: str
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    version: str = ""
    status: Status = Status.UP

    def __post_init__(self) -> None:
        if not self.address:
            raise ValueError("address is empty: give where the instance can be reached, for example '10.0.0.5:8443'")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight}: give a number above 0; use status='draining' to get no calls")

    def __hash__(self) -> int:
        return hash((self.service, self.id))

    @property
    def key(self) -> str:
        """The key of its record, below the client's namespace."""
        return service_prefix(self.service) + self.id


def service_prefix(service: str) -> str:
    """Answer what the keys of a service's instances begin with.

    Raises:
        ValueError: the name is empty or has a slash, which separates name and id.

    >>> service_prefix("payments")
    'services/payments/'
    """
    if not service or "/" in service:
        raise ValueError(f"service name {service!r}: give a name without slashes")
    return f"{ROOT}{service}/"


def encode_instance(instance: Instance) -> bytes:
    """Answer the value of an instance's key."""
    return orjson.dumps(
        {
            "address": instance.address,
            "metadata": dict(instance.metadata),
            "weight": instance.weight,
            "tags": list(instance.tags),
            "version": instance.version,
            "status": instance.status.value,
        },
        option=orjson.OPT_SORT_KEYS,
    )


def decode_instance(service: str, instance_id: str, value: bytes) -> Instance:
    """Read the value of an instance's key.

    Raises:
        ValueError: it is no record of an instance; the message says what is wrong.
    """
    record = orjson.loads(value)
    if not isinstance(record, dict):
        raise ValueError("the record is no JSON object")
    address = record.get("address")
    if not isinstance(address, str):
        raise ValueError("the record has no address")
    metadata = record.get("metadata") or {}
    tags = record.get("tags") or []
    if not isinstance(metadata, dict) or not isinstance(tags, list):
        raise ValueError("metadata must be an object and tags a list")
    return Instance(
        service,
        instance_id,
        address,
        metadata=MappingProxyType({str(key): str(text) for key, text in metadata.items()}),
        weight=float(record.get("weight") or 1.0),
        tags=tuple(str(tag) for tag in tags),
        version=str(record.get("version") or ""),
        status=Status(record.get("status") or "up"),
    )
