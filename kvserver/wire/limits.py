"""The bounds of one connection as a value; defaults and reasons are in :mod:`kvserver.limits`."""

from __future__ import annotations

from dataclasses import dataclass

from kvserver import limits


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds of a connection. Units stand last in the names."""

    message_bytes_max: int = limits.WIRE_MESSAGE_BYTES_MAX
    streams_max: int = limits.WIRE_STREAMS_MAX
    header_list_bytes_max: int = limits.WIRE_HEADER_LIST_BYTES_MAX
    continuations_max: int = limits.WIRE_CONTINUATIONS_MAX
    reset_burst: int = limits.WIRE_RESET_BURST
    resets_per_second: float = limits.WIRE_RESETS_PER_SECOND
    settings_burst: int = limits.WIRE_SETTINGS_BURST
    settings_per_second: float = limits.WIRE_SETTINGS_PER_SECOND
    ping_burst: int = limits.WIRE_PING_BURST
    pings_per_second: float = limits.WIRE_PINGS_PER_SECOND
    ping_min_seconds: float = limits.WIRE_PING_MIN_SECONDS
    ping_idle_min_seconds: float = limits.WIRE_PING_IDLE_MIN_SECONDS
    ping_strikes_max: int = limits.WIRE_PING_STRIKES_MAX
    keepalive_interval_seconds: float = limits.WIRE_KEEPALIVE_INTERVAL_SECONDS
    keepalive_timeout_seconds: float = limits.WIRE_KEEPALIVE_TIMEOUT_SECONDS
    handshake_seconds: float = limits.WIRE_HANDSHAKE_SECONDS
    idle_frames_base: int = limits.WIRE_IDLE_FRAMES_BASE
    idle_frames_per_work: int = limits.WIRE_IDLE_FRAMES_PER_WORK
    stream_window_bytes: int = limits.WIRE_STREAM_WINDOW_BYTES
    connection_window_bytes: int = limits.WIRE_CONNECTION_WINDOW_BYTES
    partial_bytes_max: int = limits.WIRE_PARTIAL_BYTES_MAX
    queued_bytes_max: int = limits.WIRE_QUEUED_BYTES_MAX
    stall_seconds: float = limits.WIRE_STALL_SECONDS
    high_water_bytes: int = limits.WIRE_STREAM_HIGH_WATER_BYTES
    low_water_bytes: int = limits.WIRE_STREAM_LOW_WATER_BYTES
    pump_bytes: int = limits.WIRE_PUMP_BYTES


class TokenBucket:
    """So many events at once, and so many a second. The caller supplies the time."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._rate = per_second
        self._tokens = burst
        self._updated: float | None = None

    def take(self, now: float) -> bool:
        """Count one event at ``now`` seconds; answer whether it is within the limit."""
        if self._updated is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
