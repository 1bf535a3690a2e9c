"""Instructions as values: what was written, checked for form, not yet expanded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..model.graph import Location, Warning  # noqa: A004
from ..model.oci import Healthcheck
from .faults import Source
from .syntax import Directive, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What all have: the name as typed, the lines, the joined text, the comments above."""

    name: str
    location: Location
    source: str
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """``key=value``; no_delim: written with a space."""

    key: str
    value: str
    no_delim: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class ArgPair:
    """``key[=default]`` of ARG; comment: its description."""

    key: str
    value: str | None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Inline:
    """A here-document that COPY or ADD copies; expand: variables in it are."""

    path: str
    data: str
    expand: bool


@dataclass(frozen=True, slots=True)
class ShellFile:
    """A here-document of RUN."""

    name: str
    data: str
    chomp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """COPY and ADD."""

    sources: tuple[str, ...]
    contents: tuple[Inline, ...]
    dest: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Transfer):
    from_: str = ""
    parents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Transfer):
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine(Instruction):
    """args: the exec form's, or one text (or none) that the SHELL runs."""

    args: tuple[str, ...]
    shell_form: bool
    files: tuple[ShellFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(CommandLine):
    """mounts and devices are the flags' values, read (and expanded) when the step is lowered."""

    mounts: tuple[str, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(CommandLine):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(CommandLine):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthcheckInstruction(Instruction):
    health: Healthcheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopsignal(Instruction):
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    pairs: tuple[ArgPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Instruction):
    """FROM and all up to the next one.  stage_name is lower case, "" for none; comment: its description."""

    base_name: str
    stage_name: str = ""
    platform: str = ""
    comment: str = ""
    commands: tuple[Instruction, ...] = ()

    def with_commands(self, commands: list[Instruction]) -> Stage:
        return replace(self, commands=tuple(commands))


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile.  meta_args: the ARGs before the first FROM; warnings: of the parser."""

    source: Source
    tree: Tree
    stages: tuple[Stage, ...]
    meta_args: tuple[Arg, ...]
    warnings: tuple[Warning, ...] = ()

    @property
    def directives(self) -> tuple[Directive, ...]:
        return self.tree.directives
