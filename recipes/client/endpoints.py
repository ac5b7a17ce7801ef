"""Addresses of servers as people write them.

``"h:p"``, ``"h1:p,h2:p"``, ``"http://h:p"``, ``"https://h:p"``, and lists of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server.

    Attributes:
        host: A name or an address, IPv6 without brackets.
        port: The TCP port.
        tls: Whether the address itself asks for TLS (``https://``).
    """

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoints(endpoints: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Parse one address, a comma-separated list, or a sequence of addresses.

    Raises:
        ValueError: an address is not understood; the message names it.

    >>> [str(e) for e in parse_endpoints("127.0.0.1:2379,http://b:1")]
    ['127.0.0.1:2379', 'b:1']
    >>> parse_endpoints("https://[::1]:7")
    (Endpoint(host='::1', port=7, tls=True),)
    """
    texts = endpoints.split(",") if isinstance(endpoints, str) else [part for e in endpoints for part in e.split(",")]
    parsed = tuple(_parse_one(text.strip()) for text in texts if text.strip())
    if not parsed:
        raise ValueError(f'no endpoint in {endpoints!r}: give at least one, for example "127.0.0.1:{DEFAULT_PORT}"')
    return parsed


def _parse_one(text: str) -> Endpoint:
    hint = f'endpoint {text!r} is not understood: write "host:port", "http://host:port" or "https://host:port"'
    split = urlsplit(text if "://" in text else f"//{text}", scheme="http")
    if split.scheme not in ("http", "https"):
        raise ValueError(f"{hint}; the scheme {split.scheme!r} is unknown")
    if split.path.strip("/") or split.query or split.fragment or split.username is not None:
        raise ValueError(hint)
    try:
        host, port = split.hostname, split.port
    except ValueError as error:
        raise ValueError(f"{hint}: {error}") from None
    if not host:
        raise ValueError(hint)
    return Endpoint(host, DEFAULT_PORT if port is None else port, split.scheme == "https")
