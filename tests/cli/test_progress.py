from __future__ import annotations

import io
import re
from typing import Any

import pytest
from ocibuild import text
from ocibuild.errors import UsageError
from ocibuild.progress import display
from ocibuild.progress.plain import PlainDisplay
from ocibuild.progress.tty import TtyDisplay

EVENTS: list[dict[str, Any]] = [
    {"t": 10.0, "type": "build.started", "id": "b", "name": "x", "steps": 2},
    {"t": 10.0, "type": "build.step", "vertex": "1", "step": 1, "total": 2, "text": "RUN make"},
    {"t": 10.0, "type": "build.step", "vertex": "2", "step": 2, "total": 2, "stage": "s", "text": "RUN x"},
    {"t": 10.0, "type": "vertex.started", "vertex": "1", "name": "[1/2] RUN make"},
    {"t": 10.1, "type": "vertex.log", "vertex": "1", "stream": 1, "data": "one\ntw"},
    {"t": 10.2, "type": "vertex.log", "vertex": "1", "stream": 1, "data": "o\n\x1b[31mred\x1b[0m\x07\n"},
    {"t": 10.3, "type": "vertex.done", "vertex": "1", "seconds": 0.3, "reason": "changed: f"},
    {"t": 10.3, "type": "vertex.done", "vertex": "2", "cached": True},
    {"t": 10.4, "type": "build.done", "image": "sha256:ab", "names": ["x"], "seconds": 0.4,
     "cached": 1, "total": 2},
]


def plain(events: list[dict[str, Any]]) -> list[str]:
    out = io.StringIO()
    shown = PlainDisplay(out)
    for event in events:
        shown.feed(event)
    return out.getvalue().splitlines()


def test_plain_progress_is_buildkits() -> None:
    assert plain(EVENTS) == [
        "#1 [1/2] RUN make",
        "#1 0.10 one",
        "#1 0.20 two",
        "#1 0.20 red\\x07",
        "#1 why: changed: f",
        "#1 DONE 0.3s",
        "",
        "#2 [s 2/2] RUN x",
        "#2 CACHED",
        "",
        "built sha256:ab as x in 0.4s, 1 of 2 steps cached",
    ]


def test_interleaved_steps_are_headed_again() -> None:
    def log(vertex: str, data: str) -> dict[str, Any]:
        return {"t": 1.0, "type": "vertex.log", "vertex": vertex, "stream": 1, "data": data}

    lines = plain([log("a", "1\n"), log("b", "2\n"), log("a", "3\n")])
    assert lines == ["#1 a", "#1 0.00 1", "", "#2 b", "#2 0.00 2", "", "#1 a", "#1 0.00 3"]


def test_a_line_without_an_end_is_shown_when_its_step_ends() -> None:
    lines = plain([
        {"t": 1.0, "type": "vertex.started", "vertex": "a", "name": "a"},
        {"t": 1.0, "type": "vertex.log", "vertex": "a", "stream": 2, "data": "no end"},
        {"t": 1.0, "type": "vertex.done", "vertex": "a", "error": {"code": "x", "message": "bad\n"}},
    ])
    assert lines == ["#1 a", "#1 0.00 no end", "#1 ERROR: bad\\x0a"]


def test_a_transfer_is_told_of_once_a_second_and_at_its_end() -> None:
    def status(when: float, current: int) -> dict[str, Any]:
        return {"t": when, "type": "vertex.status", "vertex": "p", "id": "sha256:ab", "current": current,
                "total": 2000, "unit": "bytes", "text": "pushing"}

    lines = plain([status(1.0, 10), status(1.5, 20), status(2.1, 1000), status(2.2, 2000), status(2.3, 2000)])
    assert lines[1:] == [
        "#1 sha256:ab pushing 10B / 2kB", "#1 sha256:ab pushing 1kB / 2kB", "#1 sha256:ab pushing 2kB / 2kB",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def test_a_terminal_shows_what_runs_with_its_last_lines() -> None:
    out = Terminal()
    shown = TtyDisplay(out)
    for event in EVENTS[:6]:
        shown._at = 0.0
        shown.feed(event)
    last = out.getvalue().rpartition("\x1b[J")[2]
    assert "[+] Building" in last
    assert " => [1/2] RUN make" in last
    assert " => => # two" in last
    assert "\x1b[31mred" not in last


def test_a_terminal_is_left_with_all_steps_and_a_cursor() -> None:
    out = Terminal()
    shown = TtyDisplay(out)
    for event in EVENTS:
        shown.feed(event)
    shown.close()
    shown.close()
    last = out.getvalue().rpartition("\x1b[J")[2]
    assert "CACHED [s 2/2] RUN x" in last
    assert "(2/2) FINISHED" in last
    assert last.endswith("\x1b[?25h" + "built sha256:ab as x in 0.4s, 1 of 2 steps cached\n")


@pytest.mark.parametrize(("no_colour", "colours"), [("", True), ("1", False)])
def test_colours_are_left_out_where_nobody_wants_them(
    monkeypatch: pytest.MonkeyPatch, no_colour: str, colours: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    out = Terminal()
    shown = TtyDisplay(out)
    for event in EVENTS:
        shown._at = 0.0
        shown.feed(event)
    shown.close()
    assert (re.search(r"\x1b\[\d+m", out.getvalue()) is not None) is colours


def test_auto_is_plain_where_there_is_no_terminal() -> None:
    assert isinstance(display("auto", io.StringIO()), PlainDisplay)
    with pytest.raises(UsageError, match="no terminal"):
        display("tty", io.StringIO())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"), ("tab\tstays", "tab\tstays"), ("10%\r20%\r", "20%"), ("a\x1b[1;31mb\x1b[0mc", "abc"),
        ("\x1b]0;title\x07x", "x"), ("bell\x07", "bell\\x07"), ("\u202eevil", "\\u202eevil"),
        ("\x9b31m", "\\x9b31m"), ("\udcff", "\\udcff"), ("ünï", "ünï"),
    ],
)
def test_a_log_line_cannot_touch_the_terminal(raw: str, shown: str) -> None:
    assert text.log_line(raw) == shown


@pytest.mark.parametrize(
    ("age", "words"),
    [(0.5, "Less than a second ago"), (59, "59 seconds ago"), (61, "About a minute ago"), (7200, "2 hours ago"),
     (3700, "About an hour ago"), (86400 * 3, "3 days ago"), (86400 * 400, "13 months ago")],
)
def test_ages_are_told_in_dockers_words(age: float, words: str) -> None:
    assert text.ago(1e9, 1e9 + age) == words
