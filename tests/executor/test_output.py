"""What a step prints: decoded across pieces, masked, bounded, its tail kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.executor.output import MASK, StepLog


def said(log: StepLog, *pieces: bytes) -> str:
    return "".join(log.feed(1, piece) for piece in pieces) + log.feed(1, b"", final=True)


def test_characters_cut_in_two_are_put_together() -> None:
    data = "grün".encode()
    assert said(StepLog(), data[:3], data[3:]) == "grün"


def test_undecodable_bytes_are_replaced() -> None:
    assert said(StepLog(), b"a\xffb") == "a\ufffdb"


@given(st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=100, deadline=None, database=None)
def test_a_secret_is_masked_however_it_is_cut(cuts: list[int]) -> None:
    data = b"before hunter2secret after hunter2"
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    assert said(StepLog(("hunter2secret",)), *pieces) == f"before {MASK} after hunter2"


def test_short_secrets_tear_no_holes() -> None:
    assert said(StepLog(("a",)), b"banana") == "banana"


def test_output_beyond_the_limit_is_not_kept_and_that_is_said() -> None:
    text = said(StepLog(limit=4), b"123456", b"789")
    assert text.startswith("1234\n[output clipped")
    assert "789" not in text


@pytest.mark.parametrize(("data", "tail"), [
    (b"a\nb\n", ["a", "b"]), (b"a\r\nb", ["a", "b"]), (b"", []), (b"\n\n", []),
])
def test_the_tail_is_the_last_lines(data: bytes, tail: list[str]) -> None:
    log = StepLog()
    said(log, data)
    assert log.tail == tail


def test_the_tail_is_bounded() -> None:
    log = StepLog()
    said(log, b"x\n" * 1000, b"y" * 10_000)
    assert len(log.tail) <= 40
    assert max(map(len, log.tail)) <= 2000
