"""``--call=outline`` and ``--call=targets``, in the shapes of BuildKit's subrequests."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from ..errors import DockerfileError
from ..model.graph import Location, Warning  # noqa: A004
from .faults import Fault, Source
from .gotext import to_utf8
from .instructions import Arg, Dockerfile
from .lower import Known, Lowering
from .options import LowerOptions
from .state import State


def _location(location: Location | None) -> dict[str, Any] | None:
    if location is None:
        return None
    lines = range(location.start, location.end + 1) if location.end > location.start else [location.start]
    return {"ranges": [{"start": {"line": line}, "end": {"line": line}} for line in lines]}


def _source(source: Source) -> str:
    return base64.b64encode(source.text.encode("utf-8", "surrogateescape")).decode()


def findings(
    source: Source, warnings: Sequence[Warning], error: DockerfileError | None = None
) -> dict[str, Any]:
    """What ``check`` or ``lint`` found; ``error``: what the build would end with."""
    out = [
        {
            "ruleName": item.rule, "description": item.description, "url": item.url, "detail": item.message,
            "location": _location(item.location) or {},
        }
        for item in warnings
    ]  # fmt: skip
    text = {"filename": to_utf8(source.filename), "data": _source(source), "language": "Dockerfile"}
    found: dict[str, Any] = {
        "warnings": [{key: value for key, value in item.items() if value or key == "ruleName"} for item in out],
        "sources": [text],
    }
    if error is not None:
        found["buildError"] = {"message": error.message}
        first, last = error.details.get("line"), error.details.get("end_line")
        if isinstance(first, int) and isinstance(last, int):
            found["buildError"]["location"] = _location(Location(first, last))
    return found


def targets(dockerfile: Dockerfile) -> dict[str, Any]:
    """All stages that can be asked for."""
    out: list[dict[str, Any]] = []
    for index, stage in enumerate(dockerfile.stages):
        item: dict[str, Any] = {
            "name": stage.stage_name, "default": index == len(dockerfile.stages) - 1, "description": stage.comment,
            "base": stage.base_name, "platform": stage.platform,
        }  # fmt: skip
        item = {key: to_utf8(value) if isinstance(value, str) else value for key, value in item.items() if value}
        item["location"] = _location(stage.location)
        out.append(item)
    return {"targets": out, "sources": [_source(dockerfile.source)]}


def outline(dockerfile: Dockerfile, options: LowerOptions, known: Known) -> dict[str, Any]:
    """The arguments, secrets and SSH agents that a build of the target takes.  Raises DockerfileError.

    Images that aren't known count as empty: their ONBUILD triggers don't show."""
    try:
        lowering = Lowering(dockerfile, options, known)
        target = lowering.resolve()
        lowering.dispatch()
    except Fault as fault:
        raise dockerfile.source.error(fault) from None
    out: dict[str, Any] = {
        "name": target.stage.stage_name, "description": to_utf8(target.stage.comment),
        "args": _args(lowering, target),
    }  # fmt: skip
    out = {key: value for key, value in out.items() if value}
    for key, found in (("secrets", lowering.context.secrets), ("ssh", lowering.context.ssh)):
        if found:
            out[key] = [
                {"name": to_utf8(name), **({"required": True} if required else {}), "location": _location(location)}
                for name, (required, location) in sorted(found.items(), key=lambda item: item[1][1].start)
            ]
    out["sources"] = [_source(dockerfile.source)]
    return out


def _args(lowering: Lowering, target: State) -> list[dict[str, Any]]:
    graph = lowering.graph
    found: dict[str, tuple[str, str, Location]] = {}
    wanted: list[str] = []
    for state in [target, *(s for s in graph.states if s.reachable and s is not target)]:
        wanted += graph.used_from_args.get(state, ())
        own: dict[str, tuple[str, str, Location]] = {}
        for command in state.commands:
            if isinstance(command.instruction, Arg):
                for pair in command.instruction.pairs:
                    if pair.value is None and pair.key not in graph.build_args:
                        wanted.append(pair.key)  # it takes the global one's value
                        if pair.key in graph.global_args:
                            continue
                    value = next((p.value for p in reversed(state.build_args) if p.key == pair.key), None)
                    own[pair.key] = (value or "", pair.comment, command.instruction.location)
        found = {**own, **found}
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        meta = graph.meta_args.get(name)
        if name in seen or meta is None:
            continue
        seen.add(name)
        wanted += meta.deps
        found.setdefault(name, (meta.value, meta.pair.comment, meta.location))
    out = [
        {"name": name, "description": comment, "value": value, "location": _location(location)}
        for name, (value, comment, location) in sorted(found.items(), key=lambda item: item[1][2].start)
    ]
    return [{key: value for key, value in item.items() if value} for item in out]
