"""Challenges, scopes, token requests: pure."""

from __future__ import annotations

import json

import pytest
from effort import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.errors import RegistryError, Unauthorized
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry import auth

USER = RegistryAuth("user", "secret")
REGISTRY = "https://registry.example.com"

CHALLENGES = [
    (
        'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
        [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})],
    ),
    ('Basic realm="x"', [("basic", {"realm": "x"})]),
    ("basic REALM=x", [("basic", {"realm": "x"})]),
    (
        'Basic realm="a, b", Bearer realm="https://t"',
        [("basic", {"realm": "a, b"}), ("bearer", {"realm": "https://t"})],
    ),
    (r'Basic realm="a\"b"', [("basic", {"realm": 'a"b'})]),
    ("Negotiate", [("negotiate", {})]),
    ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
    ("", []),
    ('="', []),
]


@pytest.mark.parametrize(("header", "expected"), CHALLENGES)
def test_challenges_are_read_as_rfc_9110_writes_them(header, expected):
    assert [(c.scheme, c.params) for c in auth.parse_challenges(header)] == expected


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_header_is_too_strange(header):
    assert len(auth.parse_challenges(header)) <= auth.MAX_CHALLENGES


def test_a_header_of_commas_takes_no_time():
    header = "Basic " + ", " * 4000 + '"' * 100
    assert calls(lambda: auth.parse_challenges(header)) < 50 * len(header)


def test_scopes_of_one_repository_become_one():
    assert auth.merge_scopes("repository:a:pull", "repository:a:push", "repository:b:pull") == (
        "repository:a:pull,push",
        "repository:b:pull",
    )


def test_basic_is_answered_with_the_password():
    plan = auth.answer('Basic realm="x"', REGISTRY, USER, ())
    assert plan == auth.HeaderPlan("Basic dXNlcjpzZWNyZXQ=")


def test_without_credentials_basic_is_a_dead_end():
    with pytest.raises(Unauthorized, match="no credentials"):
        auth.answer('Basic realm="x"', REGISTRY, RegistryAuth(), ())


def test_an_unknown_scheme_is_named():
    with pytest.raises(Unauthorized, match="negotiate"):
        auth.answer("Negotiate", REGISTRY, USER, ())


def test_bearer_asks_the_token_service_for_all_scopes():
    plan = auth.answer(
        'Bearer realm="https://auth.example.com/t?x=1",service="s",scope="repository:a:pull"',
        REGISTRY,
        USER,
        ("repository:a:push",),
    )
    assert isinstance(plan, auth.BearerPlan)
    assert plan.request.url.startswith(
        "https://auth.example.com/t?x=1&service=s&scope=repository:a:pull%2Cpush"
    )
    assert plan.request.headers["Authorization"].startswith("Basic ")
    assert "secret" not in plan.key


def test_an_identity_token_goes_in_a_form():
    plan = auth.answer(
        'Bearer realm="https://auth.example.com/t"', REGISTRY, RegistryAuth(identity_token="id"), ()
    )
    assert isinstance(plan, auth.BearerPlan)
    assert "refresh_token=id" in plan.request.form
    assert "Authorization" not in plan.request.headers


def test_a_registry_token_is_used_as_it_is():
    plan = auth.answer(
        'Bearer realm="https://auth.example.com/t"', REGISTRY, RegistryAuth(registry_token="rt"), ()
    )
    assert plan == auth.HeaderPlan("Bearer rt")


REALMS = [
    "http://auth.example.com/t",
    "ftp://auth.example.com",
    "file:///etc/passwd",
    "",
    "https://user:pw@auth.example.com",
    "https://127.0.0.1/t",
    "https://localhost/t",
    "https://169.254.169.254/latest",
    "https://[::1]/t",
    "https://[::ffff:127.0.0.1]/t",
    "https://0.0.0.0/t",
]


@pytest.mark.parametrize("realm", REALMS)
def test_a_realm_that_credentials_must_not_see_is_refused(realm):
    with pytest.raises(RegistryError):
        auth.answer(f'Bearer realm="{realm}"', REGISTRY, USER, ())


def test_a_registry_on_loopback_may_have_its_realm_there():
    assert auth.answer('Bearer realm="http://127.0.0.1:5001/t"', "http://127.0.0.1:5000", USER, ())


def test_a_token_lives_as_long_as_it_says_and_60_seconds_otherwise():
    assert auth.parse_token(b'{"token":"a","expires_in":300}', 1000.0, "x").expires == 1300
    assert auth.parse_token(b'{"access_token":"a"}', 1000.0, "x").expires == 1060
    for odd in (b"NaN", b"-5", b"1e300", b"0"):
        assert (
            auth.parse_token(b'{"token":"a","expires_in":' + odd + b"}", 1000.0, "x").expires
            == 1060
        )


def test_a_token_issued_a_while_ago_ends_sooner():
    body = json.dumps(
        {"token": "a", "expires_in": 300, "issued_at": "1970-01-01T00:16:30Z"}
    ).encode()
    assert auth.parse_token(body, 1000.0, "x").expires == 1290


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token":5}',
        b'{"token":"a\\nb"}',
        b'{"token":""}',
        b"<html>",
        b"[" * 100_000,
    ],
)
def test_an_answer_without_a_usable_token_is_an_error(body):
    with pytest.raises(RegistryError):
        auth.parse_token(body, 0.0, "https://a/t")


def test_cached_tokens_end_early_and_are_bounded():
    cache = auth.TokenCache()
    cache.put("k", auth.Token("t", 100.0), 0.0)
    assert cache.get("k", 50.0) is not None
    assert cache.get("k", 95.0) is None
    for number in range(2 * auth.MAX_CACHED):
        cache.put(str(number), auth.Token("t", 1e9), 0.0)
    assert len(cache.tokens) <= auth.MAX_CACHED


def test_a_plan_is_bound_to_its_authority():
    slots = {
        auth.TokenCache.slot(url, (), USER)
        for url in ("https://a", "http://a", "https://a:444", "https://b", "https://A")
    }
    assert len(slots) == 4  # a and A are the same host
