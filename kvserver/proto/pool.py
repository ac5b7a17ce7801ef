"""A descriptor pool of our own.

Other etcd clients (aetcd, etcd3, ...) register the same message names from files of other names in protobuf's default
pool, which refuses the second registration. With our own pool both live in one process.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()


def Default() -> descriptor_pool.DescriptorPool:  # noqa: N802 - generated modules call the pool module's name
    """Answer the pool in which all messages of this package are registered."""
    return POOL
