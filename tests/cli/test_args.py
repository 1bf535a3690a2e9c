from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from ocibuild import args
from ocibuild.errors import UsageError
from ocibuild.main import COMMANDS, GROUPS

SPEC = """
Options:
  -t, --tag NAME...       A name
  -q, --quiet             Little
  -i, --interactive       Input
      --no-cache          All anew
  --pull[=POLICY]         Ask
  -f, --file PATH         A file
"""


@pytest.mark.parametrize(
    ("argv", "values", "rest"),
    [
        (["-t", "a", "--tag=b", "-tc", "."], {"tag": ["a", "b", "c"]}, ["."]),
        (["-qi", "x"], {"quiet": True, "interactive": True}, ["x"]),
        (["--no-cache=false"], {"no_cache": False}, []),
        (["--no-cache", "--quiet=true"], {"no_cache": True, "quiet": True}, []),
        (["--pull", "x"], {"pull": "default"}, ["x"]),
        (["--pull=always"], {"pull": "always"}, []),
        (["-f=a", "-", "--", "-q"], {"file": "a", "quiet": False}, ["-", "-q"]),
        (["-f", "-"], {"file": "-"}, []),
        (["x", "-q", "y"], {"quiet": True}, ["x", "y"]),
    ],
)
def test_options_are_read_as_docker_reads_them(
    argv: list[str], values: dict[str, Any], rest: list[str]
) -> None:
    found = args.parse(SPEC, argv)
    assert {key: getattr(found, key) for key in values} == values
    assert found.rest == rest


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["--tga", "x"], "unknown flag: --tga", "--tag"),
        (["-x"], "unknown shorthand flag: 'x' in -x", ""),
        (["-t"], "flag needs an argument: -t", ""),
        (["--file"], "flag needs an argument: --file", ""),
        (["--quiet=maybe"], "invalid value 'maybe' for --quiet", ""),
        (["-tag", "x"], "", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_suggestion(
    argv: list[str], message: str, hint: str
) -> None:
    if argv[0] == "-tag":
        assert args.parse(SPEC, argv).tag == ["ag"]
        return
    with pytest.raises(UsageError) as caught:
        args.parse(SPEC, argv)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_the_first_argument_ends_the_options_where_a_command_follows() -> None:
    found = args.parse(SPEC, ["-q", "image", "ls", "-q", "-t"], interspersed=False)
    assert found.rest == ["image", "ls", "-q", "-t"]


def test_too_few_and_too_many_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="needed"):
        args.parse(SPEC, [], lowest=1)
    with pytest.raises(UsageError, match="unexpected argument: 'b'"):
        args.parse(SPEC, ["a", "b"], most=1)


def all_commands() -> list[tuple[str, tuple[str, str, str]]]:
    grouped = [(f"{g} {n}", c) for g, (_, members) in GROUPS.items() for n, c in members.items()]
    return [*COMMANDS.items(), *grouped]


@pytest.mark.parametrize(("name", "command"), all_commands(), ids=lambda value: str(value)[:30])
def test_every_command_has_help_that_declares_its_options(
    name: str, command: tuple[str, str, str]
) -> None:
    module = importlib.import_module(f"ocibuild.commands.{command[0]}")
    text = getattr(module, command[1]).__doc__
    assert re.search(r"Usage:  ocibuild ", text)
    assert any("--help" in option.names for option in args.declared(text))
    names = [name for option in args.declared(text) for name in option.names]
    assert len(names) == len(set(names))
