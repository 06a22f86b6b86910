"""Who may ask: names of this server, its own pages, holders of the key."""

import pytest

from glmtune.errors import ConfigError
from glmtune.serve.errors import ApiError
from glmtune.serve.guard import Access
from serving import Served

LOCAL = Access(host="127.0.0.1")
OPEN = Access(host="0.0.0.0", key="a key", names=("box.lan",), origins=("http://pages.example:3000",))


def status(access: Access, path: str = "/v1/models", **headers: str) -> int:
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    try:
        access.check({b"host": b"localhost", **named}, path)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_known(host: str) -> None:
    assert status(LOCAL, host=host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.5", "", "a@localhost",
     "localhost/x", "[::1", "box.lan", "0.0.0.0", "[", "localhost:x:y"],
)  # fmt: skip
def test_other_names_are_foreign(host: str) -> None:
    assert status(LOCAL, host=host) == 403


def test_an_open_server_is_known_by_its_addresses_and_the_names_it_was_told() -> None:
    keyed = {"authorization": "Bearer a key"}
    for host, expected in (("192.168.1.5:8000", 200), ("box.lan", 200), ("evil.example", 403)):
        assert status(OPEN, host=host, **keyed) == expected


def test_a_page_of_another_site_may_not_ask() -> None:
    for origin in ("http://evil.example", "null", "http://localhost", "file://"):
        assert status(LOCAL, host="localhost:8000", origin=origin) == 403
    assert status(LOCAL, host="localhost:8000", origin="http://localhost:8000") == 200
    assert status(OPEN, origin="http://pages.example:3000", authorization="Bearer a key") == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"authorization": "Bearer a kez"}, 401),
        ({"authorization": "a key"}, 401),
        ({"authorization": "Basic a key"}, 401),
        ({"authorization": "bearer a key"}, 200),
        ({"x_api_key": "a key"}, 200),
        ({"x_api_key": "ä"}, 401),
    ],
)
def test_with_a_key_set_every_call_needs_it(headers: dict[str, str], expected: int) -> None:
    assert status(OPEN, **headers) == expected
    assert status(OPEN, "/metrics", **headers) == expected
    assert status(OPEN, "/health", **headers) == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.lan"])
def test_an_address_beyond_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="no key protects it"):
        Access(host=host)
    with pytest.raises(ConfigError, match="empty"):
        Access(host=host, key=" ")


def test_a_foreign_host_gets_an_error_of_the_interface(served: Served) -> None:
    found = served.post("/v1/chat/completions", {}, headers={"Host": "evil.example"})
    assert found.status_code == 403
    assert found.json()["error"]["code"] == "foreign_host"


def test_a_browser_may_ask_without_the_key_if_it_may_send_it() -> None:
    page = Access(host="127.0.0.1", key="a key", origins=("http://Pages.example:3000/",))
    asked = {b"host": b"localhost", b"origin": b"http://pages.example:3000"}
    page.check(asked, "/v1/models", "OPTIONS")
    with pytest.raises(ApiError, match="key"):
        page.check(asked, "/v1/models", "GET")
    with pytest.raises(ApiError, match="Origin"):
        page.check({**asked, b"origin": b"http://evil.example"}, "/v1/models", "OPTIONS")
    assert page.other_origins == ["http://pages.example:3000"]
