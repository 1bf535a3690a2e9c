"""Nodes → typed instructions and stages: arguments and flags checked by each instruction's rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..model.oci import Healthcheck
from .faults import Fault, did_you_mean
from .flags import Flags, Kind
from .gotext import format_duration, parse_bool, parse_duration, parse_int, quote, trim
from .instructions import (
    Add,
    Arg,
    ArgPair,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    HealthcheckInstruction,
    Inline,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    ShellFile,
    Stage,
    Stopsignal,
    User,
    Volume,
    Workdir,
)  # fmt: skip
from .lexer import chomp, maybe_heredoc
from .mounts import check_mount, csv_fields
from .syntax import Node

NETWORKS = ("default", "none", "host")
SECURITIES = ("sandbox", "insecure")
MAX_MOUNTS = 256
"""Of one RUN."""
MAX_SOURCES = 10_000
"""Of one COPY or ADD."""
MIN_INTERVAL = 1_000_000
"""Nanoseconds: the shortest interval of a health check."""

_STAGE_NAME = re.compile(r"[a-z][a-z0-9\-_.]*\Z")
_ONBUILD = re.compile(r"(?i)^[\t\n\f\r ]*ONBUILD[\t\n\f\r ]*")


def read_instruction(node: Node) -> Instruction:
    """One node.  Raises Fault (with the node's location)."""
    reader = _READERS.get(node.value.lower())
    try:
        if reader is None:
            message = f"unknown instruction: {node.value}"
            raise Fault(did_you_mean(message, node.value, NAMES, fold=True), mark=node.value)
        return reader(node)
    except Fault as fault:
        fault.location = fault.location or node.location
        raise


def read_stages(nodes: tuple[Node, ...]) -> tuple[tuple[Stage, ...], tuple[Arg, ...]]:
    """All nodes → (stages, the ARGs before the first FROM).  Raises Fault."""
    stages: list[tuple[Stage, list[Instruction]]] = []
    meta_args: list[Arg] = []
    for node in nodes:
        try:
            instruction = read_instruction(node)
        except Fault as fault:
            fault.message = f"dockerfile parse error on line {node.start}: {fault.message}"
            raise
        if isinstance(instruction, Stage):
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            meta_args.append(instruction)
        else:
            hint = "a Dockerfile begins with FROM; only ARG may stand before it"
            raise Fault("no build stage in current context", node.location, mark=node.value, hint=hint)
    return tuple(stage.with_commands(commands) for stage, commands in stages), tuple(meta_args)


def _base(node: Node) -> dict[str, Any]:
    return {
        "name": node.value, "location": node.location, "source": trim(node.original), "comments": node.comments,
    }  # fmt: skip


def _no_flags(node: Node) -> None:
    if node.flags:
        Flags(node.flags, {})


def _at_least_one(node: Node) -> None:
    if not node.args:
        raise Fault(f"{node.value.upper()} requires at least one argument")


def _exactly_one(node: Node) -> str:
    if len(node.args) != 1:
        raise Fault(f"{node.value.upper()} requires exactly one argument")
    _no_flags(node)
    return node.args[0]


def _pairs(node: Node) -> tuple[Pair, ...]:
    _no_flags(node)
    _at_least_one(node)
    out: list[Pair] = []
    args = iter(node.args)
    for key, value, separator in zip(args, args, args, strict=True):
        if not key:
            raise Fault(f"{node.value.upper()} names can not be blank")
        out.append(Pair(key, value, separator == ""))
    return tuple(out)


def _env(node: Node) -> Env:
    return Env(**_base(node), pairs=_pairs(node))


def _label(node: Node) -> Label:
    return Label(**_base(node), pairs=_pairs(node))


def _maintainer(node: Node) -> Maintainer:
    return Maintainer(**_base(node), author=_exactly_one(node))


def _workdir(node: Node) -> Workdir:
    return Workdir(**_base(node), path=_exactly_one(node))


def _user(node: Node) -> User:
    return User(**_base(node), user=_exactly_one(node))


def _stopsignal(node: Node) -> Stopsignal:
    if len(node.args) != 1:
        raise Fault("STOPSIGNAL requires exactly one argument")
    return Stopsignal(**_base(node), signal=node.args[0])


def _volume(node: Node) -> Volume:
    _at_least_one(node)
    _no_flags(node)
    paths = tuple(trim(path) for path in node.args)
    if not all(paths):
        raise Fault("VOLUME specified can not be an empty string")
    return Volume(**_base(node), paths=paths)


def _expose(node: Node) -> Expose:
    _at_least_one(node)
    _no_flags(node)
    return Expose(**_base(node), ports=tuple(sorted(node.args)))


def _shell(node: Node) -> Shell:
    _no_flags(node)
    _at_least_one(node)
    if not node.json:
        raise Fault("SHELL requires the arguments to be in JSON form")
    return Shell(**_base(node), args=tuple(node.args))


def description(comments: tuple[str, ...], name: str) -> str:
    """``# name what it is`` above an ARG or a stage."""
    for line in comments if name else ():
        if line.startswith(name + " "):
            return line[len(name) + 1 :]
    return ""


def _arg(node: Node) -> Arg:
    _at_least_one(node)
    pairs: list[ArgPair] = []
    for word in node.args:
        key, equals, value = word.partition("=")
        if equals and not key:
            raise Fault("ARG names can not be blank", mark=word)
        pairs.append(ArgPair(key, value if equals else None, description(node.comments, key)))
    return Arg(**_base(node), pairs=tuple(pairs))


def _from(node: Node) -> Stage:
    args = node.args
    name = ""
    if len(args) == 3 and args[1].lower() == "as":
        name = args[2].lower()
        if not _STAGE_NAME.match(name):
            raise Fault(
                f"invalid name for build stage: {quote(args[2])}, name can't start with a number or contain symbols",
                mark=args[2],
            )
    elif len(args) != 1:
        raise Fault("FROM requires either one or three arguments")
    flags = Flags(node.flags, {"platform": "string"})
    return Stage(
        **_base(node), base_name=args[0], stage_name=name, platform=flags.text("platform"),
        comment=description(node.comments, name),
    )  # fmt: skip


def _onbuild(node: Node) -> Onbuild:
    child = node.child
    if child is None:
        raise Fault("ONBUILD requires at least one argument")
    _no_flags(node)
    trigger = trim(child.value).upper()
    if trigger == "ONBUILD":
        raise Fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise Fault(f"{trigger} isn't allowed as an ONBUILD trigger", mark=child.value)
    expression = _ONBUILD.sub("", node.original)
    expression += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in node.heredocs)
    return Onbuild(**_base(node), expression=expression)


_COPY_FLAGS: dict[str, Kind] = {
    "exclude": "list", "parents": "bool", "chown": "string", "from": "string", "chmod": "string", "link": "bool",
}  # fmt: skip
_ADD_FLAGS: dict[str, Kind] = {
    "exclude": "list", "chown": "string", "chmod": "string", "link": "bool", "keep-git-dir": "bool",
    "checksum": "string", "unpack": "bool",
}  # fmt: skip
_RUN_FLAGS: dict[str, Kind] = {"mount": "list", "network": "string", "security": "string", "device": "list"}


def _transfer(node: Node, flags: Flags) -> dict[str, Any]:
    """The sources and the destination of COPY and ADD."""
    dest = node.args[-1]
    if maybe_heredoc(dest) is not None:
        raise Fault(f"{node.value.upper()} cannot accept a heredoc as a destination", mark=dest)
    if len(node.args) > MAX_SOURCES:
        raise Fault(f"{len(node.args) - 1:,} sources, at most {MAX_SOURCES - 1:,} are taken")
    bodies = {heredoc.name: heredoc.content for heredoc in node.heredocs}
    sources: list[str] = []
    contents: list[Inline] = []
    for source in node.args[:-1]:
        heredoc = maybe_heredoc(source)
        if heredoc is None:
            sources.append(source)
            continue
        body = bodies.get(heredoc.name, "")
        contents.append(Inline(heredoc.name, chomp(body) if heredoc.chomp else body, heredoc.expand))
    return {
        "sources": tuple(sources), "contents": tuple(contents), "dest": dest, "chown": flags.text("chown"),
        "chmod": flags.text("chmod"), "link": flags.flag("link"), "exclude": flags.many("exclude"),
    }  # fmt: skip


def _two_arguments(node: Node) -> None:
    if len(node.args) < 2:
        raise Fault(
            f"{node.value.upper()} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )


def _copy(node: Node) -> Copy:
    _two_arguments(node)
    flags = Flags(node.flags, _COPY_FLAGS)
    return Copy(
        **_base(node), **_transfer(node, flags), from_=flags.text("from"), parents=flags.flag("parents")
    )


def _add(node: Node) -> Add:
    _two_arguments(node)
    flags = Flags(node.flags, _ADD_FLAGS)
    return Add(
        **_base(node), **_transfer(node, flags), checksum=flags.text("checksum"),
        keep_git_dir=flags.maybe("keep-git-dir"), unpack=flags.maybe("unpack"),
    )  # fmt: skip


def _command_line(node: Node) -> dict[str, Any]:
    args = tuple(node.args) if node.json or not node.args else (" ".join(node.args),)
    files = tuple(ShellFile(doc.name, doc.content, doc.chomp) for doc in node.heredocs)
    return {"args": args, "shell_form": not node.json, "files": files}


def _run(node: Node) -> Run:
    flags = Flags(node.flags, _RUN_FLAGS)
    devices = tuple(_device(device) for device in flags.many("device"))
    mounts = flags.many("mount")
    if len(mounts) > MAX_MOUNTS:
        raise Fault(f"{len(mounts):,} mounts, at most {MAX_MOUNTS} are taken")
    for mount in mounts:
        check_mount(mount)
    network, security = flags.text("network", "default"), flags.text("security", "sandbox")
    if network not in NETWORKS:
        raise Fault(did_you_mean(f"invalid network mode {quote(network)}", network, NETWORKS), mark=network)
    if security not in SECURITIES:
        raise Fault(did_you_mean(f"security {quote(security)} is not valid", security, SECURITIES), mark=security)
    return Run(
        **_base(node), **_command_line(node), mounts=mounts, network=network, security=security,
        devices=devices, flags=tuple(flags.used),
    )  # fmt: skip


def _device(value: str) -> str:
    """``[name=]vendor.com/class=name[,required[=bool]]``, checked; given back as written."""
    name = ""
    try:
        fields = csv_fields(value)
    except Fault as fault:
        raise Fault(f"failed to parse csv devices: {fault.message}", mark=value) from None
    for field in fields:
        key, equals, rest = field.partition("=")
        key = key.lower()
        if key == "required":
            try:
                parse_bool(rest if equals else "true")
            except ValueError:
                raise Fault(f"invalid value for {key}: {rest}", mark=field) from None
        elif key == "name" and equals:
            if name:
                raise Fault(f"device name already set to {name}", mark=field)
            name = rest
        elif not name:
            name = field
        elif not equals:
            raise Fault(f"invalid field '{field}' must be a key=value pair", mark=field)
        else:
            raise Fault(did_you_mean(f"unexpected key '{key}' in '{field}'", key, ("name", "required")), mark=field)
    return value


def _cmd(node: Node) -> Cmd:
    _no_flags(node)
    return Cmd(**_base(node), **_command_line(node))


def _entrypoint(node: Node) -> Entrypoint:
    _no_flags(node)
    return Entrypoint(**_base(node), **_command_line(node))


def _interval(flags: Flags, name: str) -> int:
    text = flags.text(name)
    if not text:
        return 0
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise Fault(str(error), mark=text) from None
    if value and value < MIN_INTERVAL:
        raise Fault(f"Interval {quote(name)} cannot be less than {format_duration(MIN_INTERVAL)}", mark=text)
    return value


def _healthcheck(node: Node) -> HealthcheckInstruction:
    _at_least_one(node)
    kind, args = node.args[0].upper(), node.args[1:]
    if kind == "NONE":
        if args:
            raise Fault("HEALTHCHECK NONE takes no arguments")
        return HealthcheckInstruction(**_base(node), health=Healthcheck(test=("NONE",)))
    flags = Flags(node.flags, dict.fromkeys((*_INTERVALS, "retries"), "string"))
    if kind != "CMD":
        raise Fault(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)", mark=node.args[0])
    command = tuple(args) if node.json else (" ".join(args),) if args else ()
    if not command:
        raise Fault("Missing command after HEALTHCHECK CMD")
    interval, timeout, start_period, start_interval = (_interval(flags, name) for name in _INTERVALS)
    retries = 0
    if flags.text("retries"):
        try:
            retries = parse_int(flags.text("retries"), 10, 32)
        except ValueError as error:
            raise Fault(str(error), mark="--retries") from None
        if retries < 0:
            raise Fault(f"--retries cannot be negative ({retries})", mark="--retries")
    test = ("CMD" if node.json else "CMD-SHELL", *command)
    health = Healthcheck(test, interval, timeout, start_period, start_interval, retries)
    return HealthcheckInstruction(**_base(node), health=health)


_INTERVALS = ("interval", "timeout", "start-period", "start-interval")
_READERS: dict[str, Callable[[Node], Instruction]] = {
    "add": _add, "arg": _arg, "cmd": _cmd, "copy": _copy, "entrypoint": _entrypoint, "env": _env,
    "expose": _expose, "from": _from, "healthcheck": _healthcheck, "label": _label, "maintainer": _maintainer,
    "onbuild": _onbuild, "run": _run, "shell": _shell, "stopsignal": _stopsignal, "user": _user,
    "volume": _volume, "workdir": _workdir,
}  # fmt: skip
NAMES = tuple(name.upper() for name in _READERS)
