"""What a download that is no archive must be to count as a Dockerfile in Docker's API."""

from __future__ import annotations

import pytest

from ocibuildd.build.remote import check_text
from ocibuildd.errors import InvalidArgument

URL = "http://user:secret@h/x"


@pytest.mark.parametrize(
    ("media_type", "head"),
    [
        ("text/plain", b"\0"),
        ("text/plain; charset=utf-8", b"FROM scratch"),
        ("", b"FROM scratch\n# \xc3\xa9"),
        ("application/octet-stream", b"\tFROM scratch"),
    ],
)
def test_text_is_a_dockerfile(media_type: str, head: bytes) -> None:
    assert check_text(URL, media_type, head) is None


@pytest.mark.parametrize(
    ("media_type", "head"),
    [
        ("text/html", b"FROM scratch"),
        ("application/json", b"{}"),
        ("application/x-tar", b"FROM scratch"),
        ("application/octet-stream; a=b", b"FROM scratch"),
        ("", b"\x7fELF\x02\x01"),
        ("application/octet-stream", b"  <html>"),
    ],
)
def test_anything_else_is_refused_in_dockerds_words(media_type: str, head: bytes) -> None:
    with pytest.raises(InvalidArgument) as failed:
        check_text(URL, media_type, head)
    assert str(failed.value).endswith(f'unsupported Content-Type "{media_type}"')
    assert "secret" not in str(failed.value)


def test_nothing_is_no_dockerfile() -> None:
    with pytest.raises(InvalidArgument, match="empty response"):
        check_text(URL, "text/plain", b"")
