"""URLs, redirects, waits, errors: pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.errors import Denied, NotFound, RegistryError, TooLarge, Unauthorized
from ocibuildd.model.reference import Reference
from ocibuildd.registry import protocol
from ocibuildd.registry.config import (
    RegistryConfig,
    RegistrySettings,
    is_internal,
    is_loopback,
    origin,
    pull_endpoints,
)

BASE = "https://registry.example.com"

HOPS = [
    ("/v2/x", f"{BASE}/v2/x", True),
    ("https://registry.example.com:443/y", "https://registry.example.com:443/y", True),
    ("https://cdn.example.com/z?sig=1", "https://cdn.example.com/z?sig=1", False),
    ("//cdn.example.com/z", "https://cdn.example.com/z", False),
    ("https://registry.example.com:8443/y", "https://registry.example.com:8443/y", False),
    ("http://registry.example.com/behind-a-proxy?a=b", f"{BASE}/behind-a-proxy?a=b", True),
]


@pytest.mark.parametrize(("location", "url", "trusted"), HOPS)
def test_a_location_is_trusted_on_the_same_authority_only(location, url, trusted):
    assert protocol.resolve_hop(BASE, f"{BASE}/v2/", location) == protocol.Hop(url, trusted)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://cdn.example.com/x",
        "file:///etc/passwd",
        "ftp://x/y",
        "https://u:p@cdn.example.com/",
        "https://127.0.0.1/",
        "https://localhost:2375/",
        "https://169.254.169.254/meta",
        "https://[::1]/",
        "gopher://x",
        "https://x:99999/",
    ],
)
def test_a_location_that_leads_astray_is_refused(location):
    with pytest.raises(RegistryError):
        protocol.resolve_hop(BASE, f"{BASE}/v2/", location)


def test_once_away_the_downgrade_is_still_refused():
    with pytest.raises(RegistryError):
        protocol.resolve_hop(BASE, "https://cdn.example.com/x", "http://cdn2.example.com/x")


LINKS = [
    ('</v2/x?n=1&last=a>; rel="next"', f"{BASE}/v2/x?n=1&last=a"),
    ('</a>; rel="prev", </b>; rel="next"', f"{BASE}/b"),
    ("</b>; rel=next", f"{BASE}/b"),
    ('</b>; title="x"; rel="next"', f"{BASE}/b"),
    ('</b>; rel="nextish"', ""),
    ("", ""),
    (None, ""),
    ("<<<>>>", ""),
]


@pytest.mark.parametrize(("header", "url"), LINKS)
def test_the_next_page_is_found(header, url):
    assert protocol.next_link(header, f"{BASE}/v2/x") == url


WAITS = [
    ("7", 7.0),
    ("0", 0.0),
    ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ("soon", None),
    ("", None),
    (None, None),
    ("-5", None),
    ("9" * 50, 1e8),
    ("1.5", None),
]


@pytest.mark.parametrize(("header", "seconds"), WAITS)
def test_retry_after_is_read_in_both_forms(header, seconds):
    assert protocol.retry_after(header, 10.0) == seconds


@given(st.integers(1, 60), st.floats(0, 0.999))
def test_back_off_grows_and_is_bounded(attempt, jitter):
    wait = protocol.backoff(attempt, jitter)
    assert 0 < wait <= protocol.BACKOFF_LAST
    assert protocol.backoff(attempt, jitter, 30.0) >= 30.0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthorized),
        (403, Denied),
        (404, NotFound),
        (413, TooLarge),
        (429, RegistryError),
        (500, RegistryError),
    ],
)
def test_each_status_has_its_error(status, error):
    body = json.dumps({"errors": [{"code": "DENIED", "message": "no\x1b[31m way\n"}]}).encode()
    found = protocol.failure("push of x", status, body)
    assert type(found) is error
    assert "denied: no" in found.message
    assert "\x1b" not in found.message
    assert found.details["status"] == status


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_error_body_is_too_strange(body):
    assert len(protocol.parse_errors(body)) <= 10


@pytest.mark.parametrize(
    "body",
    [b'{"errors": 5}', b'{"errors": [5]}', b'{"errors": [null]}', b"[" * 100_000, b"null", b'"x"'],
)
def test_error_bodies_of_another_shape_are_survived(body):
    (error,) = protocol.parse_errors(body)
    assert body.decode().startswith(error.message[:100])


def test_urls_are_shown_without_secrets():
    assert protocol.redact("https://user:pw@host/path?token=secret#x") == "https://host/path"


@given(st.text(alphabet='{}[]",:\\ab', max_size=200))
@settings(max_examples=200, deadline=None)
def test_depth_is_that_of_the_brackets_outside_strings(text):
    try:
        value = json.loads(text)
    except ValueError:
        return

    def depth(item):
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    assert protocol._depth(text.encode()) == depth(value)


RANGES = [
    ("0-99", 100),
    ("bytes=0-99", 100),
    ("0-0", 0),
    ("0--1", 0),
    ("1-5", None),
    ("x", None),
    (None, None),
    ("0-" + "9" * 30, None),
]


@pytest.mark.parametrize(("header", "count"), RANGES)
def test_an_uploads_range_tells_how_much_is_there(header, count):
    assert protocol.parse_range_end(header) == count


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:5000",
        "x.localhost",
        "127.0.0.1:5000",
        "127.9.9.9",
        "[::1]:5000",
        "::1",
        "LOCALHOST.",
    ],
)
def test_loopback_is_known_by_name_and_number(host):
    assert is_loopback(host)
    assert is_internal(host)


@pytest.mark.parametrize(
    "host", ["example.com", "10.0.0.1", "localhost.example.com", "128.0.0.1", "[2001:db8::1]:5000"]
)
def test_other_hosts_are_no_loopback(host):
    assert not is_loopback(host)
    assert not is_internal(host)


def test_mirrors_come_first_with_their_prefix_and_their_own_settings():
    config = RegistryConfig(
        {
            "docker.io": RegistrySettings(
                mirrors=("mirror.corp:5000/hub/", "other.corp"), ca="/hub.pem"
            ),
            "mirror.corp:5000": RegistrySettings(http=True),
        }
    )
    first, second, last = pull_endpoints(config, Reference.parse("busybox"))
    assert (first.host, first.repository("library/busybox"), first.http) == (
        "mirror.corp:5000",
        "hub/library/busybox",
        True,
    )
    assert (second.host, second.identity, second.ca) == ("other.corp", "other.corp", "")
    assert (last.host, last.identity, last.ca) == ("registry-1.docker.io", "docker.io", "/hub.pem")


def test_plain_http_is_for_loopback_and_where_it_is_configured():
    config = RegistryConfig(
        {"a.corp": RegistrySettings(http=True), "127.0.0.1:5001": RegistrySettings(ca="/x")}
    )
    assert origin(config, "a.corp").plain_allowed
    assert origin(config, "127.0.0.1:5000").plain_allowed
    assert not origin(config, "127.0.0.1:5001").plain_allowed
    assert not origin(config, "b.corp").plain_allowed
