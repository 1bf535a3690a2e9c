from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocibuild import jsonlite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20,
)


@settings(max_examples=200, deadline=None, database=None)
@given(VALUES)
def test_it_reads_and_writes_what_json_reads_and_writes(value: Any) -> None:
    assert json.loads(jsonlite.dumps(value)) == value
    assert jsonlite.loads(json.dumps(value)) == value
    assert jsonlite.loads(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", '{"a":1} x', '"\x01"', "[" * 100_000, b"\xff"])
def test_what_is_no_json_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError):
        jsonlite.loads(text)


def test_what_json_cannot_say_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        jsonlite.dumps({"a": object()})
