"""kvserver: a coordination node that speaks the etcd v3 protocol."""

from __future__ import annotations

__version__ = "0.1.0"
