"""SOURCE_DATE_EPOCH: a number, "context", a named context, or a stage with one remote ADD."""

from __future__ import annotations

import re

from ..model.graph import GitSource, HttpSource
from .faults import Fault, at
from .gitref import git_source, parse_git_ref
from .instructions import Add, Arg, Stage
from .lower_copy import UNNAMED, is_http
from .options import LowerOptions
from .stages import Graph
from .state import SCRATCH

NAME = "SOURCE_DATE_EPOCH"
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}\Z")


def epoch_value(graph: Graph) -> str:
    """What was given: a build argument, or a global ARG's default; "" for nothing."""
    value = graph.build_args.get(NAME)
    return value if value is not None else graph.global_args.get(NAME, "")


def settle_epoch(graph: Graph) -> int | None:
    """The epoch in seconds, and the argument as stages see it.  Raises Fault.

    A source that has to be asked (``epoch_source``) counts as ``options.epoch`` says, None = no epoch."""
    value = epoch_value(graph)
    if not value:
        graph.build_args.pop(NAME, None)  # given as "": as if it were not
        return graph.options.epoch
    if _NUMBER.match(value):
        epoch: int | None = int(value)
    else:
        epoch_source(graph)
        epoch = graph.options.epoch
    for args in (graph.build_args, graph.global_args):
        if NAME in args:
            if epoch is None:
                del args[NAME]
            else:
                args[NAME] = str(epoch)
    return epoch


def epoch_source(graph: Graph) -> GitSource | HttpSource | None:
    """What knows the time, where the value names something; None for a number or a local context.

    Raises Fault for a name that means nothing."""
    value = epoch_value(graph)
    if not value or _NUMBER.match(value):
        return None
    if value == "context":
        op = graph.options.context
        return op if isinstance(op, GitSource | HttpSource) else None
    found = graph.named_context(value, None)
    if found is not None:
        return _context_source(graph.options, found[0])
    for stage in graph.dockerfile.stages:
        if stage.stage_name.lower() == value.lower():
            with at(stage.location):
                return _stage_source(graph, stage)
    declared = graph.meta_args.get(NAME) if NAME not in graph.build_args else None
    location = declared.location if declared else None
    raise Fault(
        f"invalid {NAME}: {value}", location, mark=value,
        hint="an integer, context, a named context or a stage's name",
    )  # fmt: skip


def _context_source(options: LowerOptions, name: str) -> GitSource | HttpSource | None:
    context = options.contexts[name]
    if context.kind == "http":
        return HttpSource(context.value, "context")
    if context.kind == "git":
        ref = parse_git_ref(context.value, known_git=True)
        return git_source(ref) if ref is not None else None
    return None


def _stage_source(graph: Graph, stage: Stage) -> GitSource | HttpSource:
    env = {key: value for key, value in graph.global_args.items() if key != NAME}
    if graph.expander.word(stage.base_name, env).text != SCRATCH:
        raise Fault(f"{NAME} stage must use FROM scratch")
    source: GitSource | HttpSource | None = None
    for command in stage.commands:
        if isinstance(command, Arg):
            for pair in command.pairs:
                value = graph.build_args.get(pair.key)
                if value is None and pair.value is not None:
                    value = graph.expander.word(pair.value, env).text
                if value is not None:
                    env[pair.key] = value
        elif isinstance(command, Add):
            if source is not None:
                raise Fault(f"{NAME} stage must contain exactly one remote ADD")
            source = _add_source(graph, command, env)
        else:
            raise Fault(
                f"{NAME} stage does not meet source-only requirements: unsupported {command.name} instruction"
            )
    if source is None:
        raise Fault(f"{NAME} stage must contain exactly one remote ADD")
    return source


def _add_source(graph: Graph, add: Add, env: dict[str, str]) -> GitSource | HttpSource:
    if add.contents or len(add.sources) != 1:
        raise Fault(f"{NAME} stage must contain exactly one remote ADD source")
    text = graph.expander.word(add.sources[0], env).text
    checksum = graph.expander.word(add.checksum, env).text
    known_git = add.keep_git_dir is not None
    if is_http(text, known_git=known_git):
        name = text.partition("?")[0].rstrip("/").rpartition("/")[2]
        return HttpSource(text, name or UNNAMED, checksum)
    ref = parse_git_ref(text, known_git=known_git)
    if ref is None or ref.local:
        raise Fault(f"{NAME} stage source must be a single HTTP(S) or Git ADD")
    return git_source(ref, keep_git_dir=bool(add.keep_git_dir), checksum=checksum)
