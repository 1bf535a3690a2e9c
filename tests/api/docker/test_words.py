"""Errors in dockerd's words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ocibuildd.api.docker import gojson
from ocibuildd.api.docker.words import (
    describe,
    pull_refused,
    refused_request,
    registry_says,
    remote_failed,
    unreachable,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{bad", "invalid character 'b' looking for beginning of object key string"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ('{"a": [1], "b" }', "invalid character '}' after object key"),
        ("{}x", "invalid character 'x' after top-level value"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ('{"a":"b', "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("[" * 100_000, "exceeded max depth"),
    ],
)
def test_bad_json_is_refused_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        gojson.decode(text)


def test_json_of_another_kind_names_both_kinds() -> None:
    said = gojson.mismatch([1], "map[string]string")
    assert said == "json: cannot unmarshal array into Go value of type map[string]string"


MISMATCH = "image with reference h:1/a/b:v was found but does not match the specified platform"
DENIED = "pull access denied for h:1/a/b, repository does not exist or may require 'docker login'"
REFUSED = "registry 127.0.0.1:1: can't connect: Connect call failed ('127.0.0.1', 1)"
GET = 'Get "{}": dial tcp 127.0.0.1:1: connect: connection refused'


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (REFUSED, GET.format("http://127.0.0.1:1/v2/")),
        ("registry a.example: no such host, or no name service",
         'Get "https://a.example/v2/": dial tcp: lookup a.example: no such host'),
        ("something else", "something else"),
    ],
)  # fmt: skip
def test_a_registry_out_of_reach_is_told_as_gos_client_does(message: str, words: str) -> None:
    assert unreachable(message) == words


@pytest.mark.parametrize(
    ("code", "why", "words"),
    [
        ("not-found", "manifest x at h: manifest_unknown: manifest unknown (HTTP 404)",
         "manifest for h:1/a/b:v not found: manifest unknown: manifest unknown"),
        ("not-found", "tags of x: name_unknown: repository name not known to registry (HTTP 404)",
         "repository h:1/a/b not found: name unknown: repository name not known to registry"),
        ("not-found", "image x: is for linux/amd64, expected linux/arm64",
         f"{MISMATCH}: wanted linux/arm64, actual: linux/amd64"),
        ("denied", "no", f"{DENIED}: no"),
        ("registry", REFUSED, GET.format("http://127.0.0.1:1/v2/")),
    ],
)  # fmt: skip
def test_a_pull_that_fails_says_what_dockerd_says(code: str, why: str, words: str) -> None:
    assert pull_refused(code, "h:1/a/b:v", why) == words


@pytest.mark.parametrize(
    ("message", "step", "words"),
    [
        ("group 'x': not in the image's /etc/group", "RUN id",
         "unable to find group x: no matching entries in group file"),
        ('"/no": not found in the source', "COPY --from=a /no /", "COPY failed: stat no: file does not exist"),
        (REFUSED, "ADD http://127.0.0.1:1/x /", "ADD failed: " + GET.format("http://127.0.0.1:1/x")),
        ("GET http://127.0.0.1:1/x: can't connect: Connect call failed ('127.0.0.1', 1)", "ADD http://127.0.0.1:1/x /",
         "ADD failed: " + GET.format("http://127.0.0.1:1/x")),
        ("GET http://h/x: the server answered HTTP 404", "ADD http://h/x /",
         "ADD failed: failed to GET http://h/x with status 404 Not Found"),
        ("h:1/a/b:v: " + REFUSED, "COPY --link --from=h:1/a/b:v x /",
         "invalid from flag value h:1/a/b:v: " + GET.format("http://127.0.0.1:1/v2/")),
        ("cannot copy to non-directory: /f", "WORKDIR /f", "Cannot mkdir: /f is not a directory"),
        ("cannot copy to non-directory: /f", "COPY a /f/", "cannot copy to non-directory: /f"),
    ],
)  # fmt: skip
def test_a_step_that_fails_says_what_the_classic_builder_says(
    message: str, step: str, words: str
) -> None:
    assert describe({"code": "x", "message": message}, step) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"message": "unknown flag: --x"}, "dockerfile parse error line 2: Unknown flag: x"),
        ({"message": "ENV must have two arguments"}, "failed to parse Dockerfile: ENV must have two arguments"),
        ({"message": "no build stage in current context"}, "no build stage in current context"),
        ({"message": "invalid stage index 5"},
         "dockerfile parse error line 2: invalid from flag value 5: index out of bounds"),
        ({"message": "dockerfile .: not a regular file", "code": "invalid-argument"},
         "unexpected error reading Dockerfile: read .: is a directory"),
        ({"message": "tar: the archive is cut off", "code": "corrupt"},
         "Error processing tar file(exit status 1): unexpected EOF: tar: the archive is cut off"),
    ],
)  # fmt: skip
def test_what_keeps_a_build_from_beginning_was_worded_otherwise_before_api_1_42(
    error: dict[str, Any], words: str
) -> None:
    whole = {"code": "dockerfile", "details": {"line": 2}, **error}
    assert refused_request(whole, "1.41") == words


def test_a_remote_context_that_fails_names_its_url() -> None:
    said = remote_failed(REFUSED, "http://127.0.0.1:1/x")
    assert said == f"error downloading remote context http://127.0.0.1:1/x: {GET.format('http://127.0.0.1:1/x')}"
    assert remote_failed("git fetch: no", "git://h/x") == "error fetching: git fetch: no"


def test_a_registrys_own_words_are_passed_on() -> None:
    assert registry_says("manifest x: manifest_unknown: not here (HTTP 404)") == "manifest unknown: not here"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("cpuset-cpus: list '9': 9 is not within 0-3", "Requested CPUs are not available - requested 9, available: 0-3"),
        ("cpuset-cpus: list 'x': expected numbers", "Invalid value x for cpuset cpus: expected numbers"),
        ("dockerfile loop: Too many levels of symbolic links", "forbidden path outside the build context: loop ()"),
    ],
)
def test_a_request_that_is_refused_is_told_as_dockerd_tells_it(message: str, words: str) -> None:
    assert refused_request({"code": "invalid-argument", "message": message}) == words
