"""The versions the node answers: its own, and the etcd release whose behaviour it follows.

Clients and tools parse the etcd version to choose features, so it names the release that the differential tests compare
with, not a newer one.
"""

from __future__ import annotations

from kvserver import __version__

KVSERVER_VERSION = __version__
ETCD_VERSION = "3.5.1"
ETCD_CLUSTER_VERSION = "3.5.0"
MIN_CLUSTER_VERSION = "3.0.0"
"""What a new cluster claims until its members have agreed on a version."""
