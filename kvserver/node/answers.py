"""Response headers as bytes.

Every answer starts with a ResponseHeader, and on the hot paths (put, range) the header is most of the answer, so it is
composed by hand: constant bytes for who answers, a varint for the revision, constant bytes for the term.
"""

from __future__ import annotations

from kvserver.proto.rpc_pb2 import ResponseHeader


def varint(number: int) -> bytes:
    """Encode a non-negative int as a protobuf varint."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class HeaderEncoder:
    """Encodes the header of an answer, framed as field 1 of any response message.

    Hot: one call an answer (benchmarks ``put`` and ``range``).
    """

    __slots__ = ("_cache", "_cached_revision", "_identity", "_suffix", "cluster_id", "member_id", "term")

    def __init__(self, cluster_id: int, member_id: int) -> None:
        self.cluster_id = cluster_id
        self.member_id = member_id
        self._identity = b"\x08" + varint(cluster_id) + b"\x10" + varint(member_id)
        self.term = 0
        self._suffix = b""
        self._cached_revision = -1
        self._cache = b""

    def set_term(self, term: int) -> None:
        """Set the Raft term that later headers carry."""
        self.term = term
        self._suffix = b"\x20" + varint(term) if term else b""
        self._cached_revision = -1

    def framed(self, revision: int) -> bytes:
        """Answer ``0x0a length header`` for a store revision; the last one is cached, as reads repeat it."""
        if revision == self._cached_revision:
            return self._cache
        if revision < 0x80:
            number = b"\x18%c" % revision if revision else b""
        elif revision < 0x4000:
            number = b"\x18%c%c" % (revision & 0x7F | 0x80, revision >> 7)
        elif revision < 0x200000:
            number = b"\x18%c%c%c" % (revision & 0x7F | 0x80, revision >> 7 & 0x7F | 0x80, revision >> 14)
        else:
            number = b"\x18" + varint(revision)
        body = self._identity + number + self._suffix
        self._cache = framed = b"\x0a%c" % len(body) + body
        self._cached_revision = revision
        return framed

    def message(self, revision: int) -> ResponseHeader:
        """Answer the same header as a message, for answers that are composed as objects."""
        return ResponseHeader(
            cluster_id=self.cluster_id, member_id=self.member_id, revision=revision, raft_term=self.term
        )
