"""Header bytes composed by hand equal what protobuf serializes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.answers import HeaderEncoder, varint
from kvserver.proto.rpc_pb2 import PutResponse, ResponseHeader

uint64 = st.integers(0, 2**64 - 1)
int63 = st.integers(0, 2**63 - 1)


@given(uint64, uint64, int63, int63)
def test_header_is_what_protobuf_serializes(cluster_id: int, member_id: int, revision: int, term: int) -> None:
    encoder = HeaderEncoder(cluster_id or 1, member_id or 1)
    encoder.set_term(term)
    expected = ResponseHeader(cluster_id=cluster_id or 1, member_id=member_id or 1, revision=revision, raft_term=term)
    assert encoder.framed(revision) == PutResponse(header=expected).SerializeToString()
    assert encoder.message(revision) == expected


@given(st.lists(st.tuples(st.integers(0, 2**63 - 2), st.integers(1, 9)), min_size=1, max_size=20))
def test_the_cache_never_answers_another_revision_or_term(steps: list[tuple[int, int]]) -> None:
    encoder = HeaderEncoder(7, 8)
    for revision, term in steps:
        encoder.set_term(term)
        for asked in (revision, revision, revision + 1, revision):
            header = PutResponse.FromString(encoder.framed(asked)).header
            assert (header.revision, header.raft_term) == (asked, term)


@given(uint64)
def test_varint_is_protobufs(number: int) -> None:
    encoded = ResponseHeader(cluster_id=number).SerializeToString()
    assert varint(number) == (encoded[1:] if number else b"\x00")
