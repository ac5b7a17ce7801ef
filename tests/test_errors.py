"""The error table is whole: every protocol error has a code, a text and an HTTP status."""

from __future__ import annotations

import pytest

from kvserver.errors import HTTP_STATUS, Code, ProtocolError


@pytest.mark.parametrize("error", ProtocolError.TABLE, ids=lambda error: error.__name__)
def test_each_error_has_a_row(error: type[ProtocolError]) -> None:
    raised = error()
    assert raised.code in HTTP_STATUS
    assert raised.code is not Code.OK
    assert str(raised) == raised.message == error.message
    assert raised.message.startswith(("etcdserver: ", "context "))


def test_texts_are_unique_and_every_code_has_a_status() -> None:
    texts = [error.message for error in ProtocolError.TABLE]
    assert len(texts) == len(set(texts)) > 50
    assert set(HTTP_STATUS) == set(Code)
