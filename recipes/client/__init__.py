"""The asynchronous client: the typed surface in ``client``, the raw protocol in ``rpc``, failover in ``channel``."""

from recipes.client.client import Client

__all__ = ["Client"]
