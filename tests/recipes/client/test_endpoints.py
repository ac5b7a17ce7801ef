from __future__ import annotations

import pytest

from recipes.client.endpoints import Endpoint, parse_endpoints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:2379", [Endpoint("127.0.0.1", 2379)]),
        ("a:1,b:2", [Endpoint("a", 1), Endpoint("b", 2)]),
        (" a:1 , b:2 ,", [Endpoint("a", 1), Endpoint("b", 2)]),
        ("http://a:1/", [Endpoint("a", 1)]),
        ("https://a:1", [Endpoint("a", 1, tls=True)]),
        ("a", [Endpoint("a", 2379)]),
        ("[::1]:5", [Endpoint("::1", 5)]),
        (["a:1", "b:2,c:3"], [Endpoint("a", 1), Endpoint("b", 2), Endpoint("c", 3)]),
    ],
)
def test_addresses_as_people_write_them(text: str | list[str], expected: list[Endpoint]) -> None:
    assert list(parse_endpoints(text)) == expected


@pytest.mark.parametrize("text", ["", ",", "a:b", "a:70000", "ftp://a:1", "http://a:1/path", "http://u@a:1", "http://"])
def test_a_bad_address_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoints(text)
