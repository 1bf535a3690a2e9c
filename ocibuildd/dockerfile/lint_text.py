"""The checks that need no expansion: names, casing, descriptions, sensitive keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..model.graph import Location
from .gotext import quote
from .instructions import Stage
from .lint import (
    CONSISTENT_CASING,
    DEFINITION_DESCRIPTION,
    DUPLICATE_STAGE_NAME,
    FROM_AS_CASING,
    MAINTAINER,
    NO_EMPTY_CONTINUATION,
    RESERVED_STAGE_NAME,
    SECRETS_USED,
    STAGE_NAME_CASING,
    Linter,
)  # fmt: skip
from .syntax import Node, Tree

RESERVED = ("context", "scratch")
_SECRET = re.compile(
    r"(?i)(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|\Z)"
)
_HARMLESS = re.compile(r"(?i)(?:_|^)(?:public|file|version)(?:_|\Z)")


def lint_continuations(tree: Tree, lint: Linter) -> None:
    """Blank lines in the midst of an instruction."""
    for line, _text in tree.empty_continuations:
        lint.warn(NO_EMPTY_CONTINUATION, "Empty continuation line", Location(line, line))


def lint_before(node: Node, lint: Linter) -> None:
    """What a FROM or a MAINTAINER shows as it stands; also one that can't be read."""
    kind = node.value.lower()
    if kind not in ("from", "maintainer"):
        return
    lint = lint.for_comments(node.comments)
    if kind == "maintainer":
        lint.warn(MAINTAINER, "Maintainer instruction is deprecated in favor of using label", node.location)
        return
    args = node.args
    if len(args) == 3 and args[2] != args[2].lower():
        lint.warn(STAGE_NAME_CASING, f"Stage name '{args[2]}' should be lowercase", node.location)
    if len(args) < 3:
        return
    lower, upper = node.value == node.value.lower(), node.value == node.value.upper()
    if (lower and args[1] != args[1].lower()) or (upper and not lower and args[1] != args[1].upper()):
        message = f"'{args[1]}' and '{node.value}' keywords' casing do not match"
        lint.warn(FROM_AS_CASING, message, node.location)


def lint_description(node: Node, lint: Linter) -> None:
    """The comment above an ARG or a named stage describes it."""
    kind = node.value.upper()
    if kind == "FROM" and len(node.args) == 3:
        keys = [node.args[2].lower()]
    elif kind == "ARG":
        keys = [word.partition("=")[0] for word in node.args]
    else:
        return
    if not node.comments or node.comments[-1].partition(" ")[0] in keys:
        return
    example = keys[0] if len(keys) == 1 else "<arg_key>"
    message = f"Comment for {kind} should follow the format: `# {example} <description>`"
    lint.for_comments(node.comments).warn(DEFINITION_DESCRIPTION, message, node.location)


def lint_stages(stages: tuple[Stage, ...], lint: Linter) -> None:
    """Names that are taken or reserved, and instructions in another casing than most."""
    seen: set[str] = set()
    for stage in stages:
        name = stage.stage_name
        if name in RESERVED:
            message = f"Stage name should not use the same name as reserved stage {quote(name)}"
            lint.warn(RESERVED_STAGE_NAME, message, stage.location)
        if name and name in seen:
            message = f"Duplicate stage name {quote(name)}, stage names should be unique"
            lint.warn(DUPLICATE_STAGE_NAME, message, stage.location)
        seen.add(name)
    every = [(item.name, item.location) for stage in stages for item in (stage, *stage.commands)]
    lower = sum(name == name.lower() for name, _ in every)
    upper = sum(name == name.upper() for name, _ in every)
    lint_casing(every, lint, "lowercase" if lower > upper else "uppercase")


def lint_casing(every: Iterable[tuple[str, Location]], lint: Linter, wanted: str) -> None:
    for name, location in every:
        if name != (name.lower() if wanted == "lowercase" else name.upper()):
            message = f"Command '{name}' should match the case of the command majority ({wanted})"
            lint.warn(CONSISTENT_CASING, message, location)


def lint_secret(instruction: str, key: str, location: Location, lint: Linter) -> None:
    """A key of ENV or ARG that sounds like a secret's."""
    if _SECRET.search(key) and not _HARMLESS.search(key):
        message = f"Do not use ARG or ENV instructions for sensitive data ({instruction} {quote(key)})"
        lint.warn(SECRETS_USED, message, location)
