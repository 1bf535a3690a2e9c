"""What lowering an instruction needs: the vertices so far, expansion with its warnings, names of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ..model.graph import (
    ContextSource,
    CopySource,
    GitSource,
    HttpSource,
    ImageSource,
    Location,
    Op,
    Scratch,
    Vertex,
)  # fmt: skip
from ..model.graph import Copy as CopyOp
from ..model.oci import Platform
from ..model.patterns import Ignore
from .expand import Expander
from .faults import Fault
from .gitref import git_source, parse_git_ref
from .gotext import to_utf8
from .instructions import Instruction
from .lint import UNDEFINED_VAR, Linter
from .options import CONTEXT, LowerOptions, NamedContext, ResolvedImage
from .platforms import format_all, normalize, parse_platform
from .stages import Graph
from .state import Budget, State

NOT_IN_ENV = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
MAX_NAME = 2_000
"""Characters of a vertex's name."""
ARCHIVE = "context"
"""What the downloaded archive of a context is called."""


@dataclass(slots=True)
class Context:
    """One lowering.  ``ignore``: of the main context, for the check of COPY sources."""

    graph: Graph
    options: LowerOptions
    budget: Budget
    epoch: int | None = None
    ignore: Ignore | None = None
    vertices: list[Vertex] = field(default_factory=list)
    known_vertices: dict[tuple[object, ...], int] = field(default_factory=dict)
    secrets: dict[str, tuple[bool, Location]] = field(default_factory=dict)
    ssh: dict[str, tuple[bool, Location]] = field(default_factory=dict)

    # --- vertices

    def vertex(
        self, op: Op, inputs: tuple[int, ...] = (), name: str = "", *,
        ignore_cache: bool = False, location: Location | None = None,
    ) -> int:  # fmt: skip
        """The index of this operation on these inputs; the same one is the same vertex."""
        key = (op, inputs, ignore_cache)
        index = self.known_vertices.get(key)
        if index is None:
            index = len(self.vertices)
            self.known_vertices[key] = index
            self.vertices.append(Vertex(op, inputs, to_utf8(name), ignore_cache, location))
        return index

    def root(self, state: State) -> int:
        """The vertex of a state's root file system, the empty one for scratch."""
        return self.vertex(Scratch()) if state.vertex is None else state.vertex

    def main_context(self) -> int:
        """What COPY and bind mounts without ``from`` read."""
        op = self.options.context
        if isinstance(op, HttpSource):
            return self.unpacked(op, f"[internal] load remote build context {op.url}")
        if isinstance(op, GitSource):
            return self.vertex(op, name=f"[internal] load git source {op.remote}")
        return self.vertex(op, name="[internal] load build context")

    def unpacked(self, op: HttpSource, name: str) -> int:
        """An archive by HTTP as a directory."""
        archive = self.vertex(op, name=name)
        copy = CopyOp((CopySource(1, (op.filename,)),), "/", unpack=True, is_add=True)
        return self.vertex(copy, (self.vertex(Scratch()), archive), f"{name} (unpack)")

    def named_root(self, name: str, context: NamedContext) -> int:
        """The vertex of a local, git or HTTP ``--build-context``."""
        if context.kind == "local":
            return self.vertex(ContextSource(name, context.ignore), name=f"[context {name}] load from client")
        if context.kind == "git":
            ref = parse_git_ref(context.value, known_git=True)
            if ref is None:
                raise Fault(f"--build-context {name}: {context.value!r} is no git URL")
            return self.vertex(git_source(ref), name=f"[context {name}] {ref.remote}")
        op = HttpSource(context.value, ARCHIVE)
        return self.unpacked(op, f"[context {name}] {context.value}")

    def as_root(self, vertex: int, name: str) -> int:
        """The files of a context (a vertex) as a root file system: one layer."""
        if not isinstance(self.vertices[vertex].op, ContextSource | GitSource):
            return vertex
        copy = CopyOp((CopySource(1, ("/",)),), "/")
        return self.vertex(copy, (self.vertex(Scratch()), vertex), f"[context {name}] as a root file system")

    def image_root(self, image: ResolvedImage, platform: Platform, name: str, location: Location) -> int | None:
        """The vertex of an image; None for one without layers."""
        config = image.config
        if not config.rootfs.diff_ids and all(item.empty_layer for item in config.history):
            return None
        op = ImageSource(image.ref, image.digest, platform, image.layout)
        return self.vertex(op, name=name, location=location)

    # --- expansion

    def expand(self, state: State, instruction: Instruction, lint: Linter) -> Callable[[str], str]:
        """Expansion of an instruction's words in its stage, warning of names that nobody set."""

        return lambda word: self.expand_word(self.graph.expander, state, instruction, lint, word)

    def expand_body(self, state: State, instruction: Instruction, lint: Linter, body: str) -> str:
        """Expansion in a here-document: quotes mean nothing, the escape is the backslash."""
        expander = Expander("\\", skip_quotes=True, work=self.graph.expander.work)
        return self.expand_word(expander, state, instruction, lint, body)

    def expand_word(
        self, expander: Expander, state: State, instruction: Instruction, lint: Linter, word: str
    ) -> str:
        """Expand one word; what had no value is told even where the expansion fails.  Raises Fault."""
        try:
            found = expander.word(word, state.env)
        except Fault as fault:
            self.unset(state, instruction, fault.unmatched, lint)
            raise
        if found.unmatched:
            self.unset(state, instruction, found.unmatched, lint)
        return found.text

    def unset(self, state: State, instruction: Instruction, names: Iterable[str], lint: Linter) -> None:
        declared = {pair.key for pair in state.build_args}
        for name in names:
            if name in declared or name in NOT_IN_ENV:
                continue
            near = lint.near(UNDEFINED_VAR, name, state.env)
            message = f"Usage of undefined variable '${name}'" + (f" (did you mean ${near}?)" if near else "")
            lint.warn(UNDEFINED_VAR, message, instruction.location)

    # --- names of steps

    def step_name(self, state: State, text: str, masks: dict[str, str] | None = None, *, raw: bool = False) -> str:
        """``[builder 2/5] RUN make``: the instruction with its variables expanded, where they can be."""
        expander = self.graph.expander
        if raw:
            expander = replace(expander, raw_quotes=True, keep_unset=True)
        env = {**state.env, **masks} if masks else state.env
        if len(text) <= MAX_NAME:
            try:
                text = expander.word(text, env).text
            except Fault:
                pass
        word, space, rest = text[:MAX_NAME].partition(" ")
        return self.prefix(state, word.upper() + space + rest)

    def prefix(self, state: State, text: str) -> str:
        """BuildKit's prefix, counting the stage's steps."""
        if state.total == 0:
            return text
        parts = ""
        if self.options.multi_platform and state.platform is not None:
            parts += format_all(state.platform) + _cross(state.platform, state.env) + " "
        if state.name:
            parts += state.name + " "
        state.count += 1
        width = int(1 + math.log10(state.total))
        trigger = "ONBUILD " if state.running_trigger else ""
        return f"[{parts}{state.count:{width}d}/{state.total}] {trigger}{text}"


def _cross(base: Platform, env: dict[str, str]) -> str:
    """``->arm64``: the platform that a stage's TARGET variables name, where it is another."""
    target: Platform | None = None
    if "TARGETPLATFORM" in env:
        try:
            target = parse_platform(env["TARGETPLATFORM"], base)
        except ValueError:
            target = None
    if target is None:
        if not env.keys() & {"TARGETOS", "TARGETARCH", "TARGETVARIANT"}:
            return ""
        target = Platform(
            env.get("TARGETARCH") or base.architecture, env.get("TARGETOS") or base.os,
            variant=env.get("TARGETVARIANT", ""),
        )  # fmt: skip
    target = normalize(target)
    if target.os != base.os:
        return "->" + format_all(target)
    if target.architecture != base.architecture:
        return "->" + "/".join(part for part in (target.architecture, target.variant) if part)
    return ""


def context_patterns(options: LowerOptions) -> Ignore | None:
    """The ignore file of the main context, compiled.  Raises Fault."""
    if not isinstance(options.context, ContextSource) or not options.context.ignore:
        return None
    try:
        return Ignore(options.context.ignore)
    except ValueError as error:
        raise Fault(f"{CONTEXT}: .dockerignore: {error}") from None
