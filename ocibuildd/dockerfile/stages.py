"""From stages to a graph of states: base names, targets, dependencies, named contexts, ONBUILD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..model.graph import Location
from ..model.oci import Platform
from .baseref import parse_named
from .expand import Expander, Expansion, Work
from .faults import Fault, at, did_you_mean, nearest
from .gotext import parse_int, quote
from .instructions import ArgPair, Copy, Dockerfile, Instruction, Onbuild, Run, Stage
from .lexer import lex
from .lint import (
    CONST_PLATFORM,
    INVALID_DEFAULT_ARG,
    REDUNDANT_TARGET_PLATFORM,
    UNDEFINED_ARG_IN_FROM,
    Linter,
)  # fmt: skip
from .mounts import check_mount
from .options import LowerOptions, NamedContext
from .platforms import format_all, normalize, parse_platform
from .reader import read_instruction
from .state import SCRATCH, Command, State

MAX_STAGES = 2_000
MAX_TRIGGERS = 1_000



def _index(text: str) -> int | None:
    """A stage's index, where the text is one (``strconv.Atoi``)."""
    try:
        return parse_int(text, 10, 64)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class MetaArg:
    """What is known of a global ARG: for the outline."""

    pair: ArgPair
    value: str
    deps: frozenset[str]
    location: Location


@dataclass(slots=True)
class Graph:
    """All states.  ``by_name``: stages by their name; the last of a name wins."""

    dockerfile: Dockerfile
    options: LowerOptions
    lint: Linter
    expander: Expander
    global_args: dict[str, str] = field(default_factory=dict)
    meta_args: dict[str, MetaArg] = field(default_factory=dict)
    build_args: dict[str, str] = field(default_factory=dict)
    contexts: dict[str, tuple[str, NamedContext]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    by_name: dict[str, State] = field(default_factory=dict)
    used_from_args: dict[State, dict[str, None]] = field(default_factory=dict)

    # --- the graph's beginnings: FROM lines

    def build(self) -> None:
        """Make the states and their dependencies.  Raises Fault."""
        stages = self.dockerfile.stages
        if len(stages) > MAX_STAGES:
            raise Fault(f"{len(stages):,} stages, at most {MAX_STAGES:,} are taken", stages[MAX_STAGES].location)
        for index, stage in enumerate(stages):
            self._add_stage(index, stage)

    def _add_stage(self, index: int, stage: Stage) -> None:
        lint = self.lint.for_comments(stage.comments)
        with at(stage.location):
            base, used = self._expand_base(stage, lint)
            state = State(stage, index, stage.stage_name or f"stage-{index}", base)
            if stage.platform:
                state.platform = self._expand_platform(stage, lint, used)
            self.used_from_args[state] = used
            if stage.stage_name:
                found = self.named_context(stage.stage_name, state.platform)
                if found is not None:
                    state.context_name, state.context = found
                    self.add(state)
                    state.base = None
                    return
            self.add(state)
        state.ignore_cache = self._no_cache(stage.stage_name)
        state.total = int(state.base_name != SCRATCH and state.base is None)

    def _no_cache(self, name: str) -> bool:
        options = self.options
        if options.no_cache:
            return True
        return any(name.lower() == wanted.lower() for wanted in options.no_cache_filter)

    def add(self, state: State) -> None:
        self.states.append(state)
        state.base = self.by_name.get(state.base_name)
        if state.stage.stage_name:
            self.by_name[state.stage.stage_name.lower()] = state

    def _expand_base(self, stage: Stage, lint: Linter) -> tuple[str, dict[str, None]]:
        found = self._expand(stage.base_name, stage, lint)
        if not found.text:
            raise Fault(
                f"base name ({stage.base_name}) should not be blank", mark=stage.base_name,
                hint="declare the ARG above the first FROM, with a default",
            )  # fmt: skip
        return found.text, dict(found.matched)

    def _expand_platform(self, stage: Stage, lint: Linter, used: dict[str, None]) -> Platform:
        found = self._expand(stage.platform, stage, lint)
        alone = list(found.matched) == ["TARGETPLATFORM"] and not found.unmatched
        if alone and found.text == self.global_args["TARGETPLATFORM"]:
            message = (
                f"Setting platform to predefined {stage.platform} in FROM is redundant "
                "as this is the default behavior"
            )
            lint.warn(REDUNDANT_TARGET_PLATFORM, message, stage.location)
        if not found.text:
            near = next((n for key in found.unmatched if (n := nearest(key, self.global_args))), "")
            suffix = f" (did you mean {near}?)" if near else ""
            raise Fault(f"empty platform value from expression {stage.platform}{suffix}", mark=stage.platform)
        try:
            platform = parse_platform(found.text, self.options.build_platform)
        except ValueError as error:
            near = next((n for key in found.unmatched if (n := nearest(key, self.global_args))), "")
            suffix = f" (did you mean {near}?)" if near else ""
            message = f"failed to parse platform {stage.platform}: {error}{suffix}"
            raise Fault(message, mark=stage.platform) from None
        if not found.matched and not found.unmatched:
            name = stage.stage_name
            if platform.os not in name and platform.architecture not in name:
                message = f"FROM --platform flag should not use constant value {quote(found.text)}"
                lint.warn(CONST_PLATFORM, message, stage.location)
        used.update(found.matched)
        return platform

    def _expand(self, word: str, stage: Stage, lint: Linter) -> Expansion:
        """Expand a word of a FROM; names that no ARG declares are told even where it fails."""
        try:
            found = self.expander.word(word, self.global_args)
        except Fault as fault:
            self._undeclared(fault.unmatched, stage.location, lint)
            raise
        self._undeclared(found.unmatched, stage.location, lint)
        return found

    def _undeclared(self, unmatched: Iterable[str], location: Location, lint: Linter) -> None:
        for name in unmatched:
            if name in self.meta_args:
                continue
            near = lint.near(UNDEFINED_ARG_IN_FROM, name, [*self.meta_args, *self.global_args])
            message = f"FROM argument '{name}' is not declared" + (f" (did you mean {near}?)" if near else "")
            lint.warn(UNDEFINED_ARG_IN_FROM, message, location)

    # --- names

    def named_context(self, name: str, platform: Platform | None) -> tuple[str, NamedContext] | None:
        """The ``--build-context`` that stands for a stage's or an image's name."""
        if not self.contexts or name.lower() in (SCRATCH, "context"):
            return None
        name = context_name(name)
        if platform is None and not self.options.implicit_platform:
            platform = self.options.platform
        if platform is not None:
            found = self.contexts.get(f"{name}::{format_all(normalize(platform))}")
            if found is not None:
                return found
        return self.contexts.get(name)

    def names(self) -> list[str]:
        return [state.name for state in self.states if state.name]

    def target(self) -> State:
        """The stage asked for.  Raises Fault."""
        wanted = self.options.target
        if not wanted:
            return self.states[-1]
        found = self.by_name.get(wanted.lower())
        index = _index(wanted)
        if found is None and index is not None and 0 <= index < len(self.states):
            found = self.states[index]
        if found is None:
            message = f"target stage {quote(wanted)} could not be found"
            hint = f"the stages are: {', '.join(self.names()[:20])}"
            raise Fault(did_you_mean(message, wanted, self.names()), hint=hint)
        return found

    # --- dependencies

    def connect(self) -> None:
        """COPY --from and mounts → dependencies, cycles refused.  Raises Fault."""
        for state in list(self.states):
            state.commands = []
            for instruction in state.stage.commands:
                command = self._command(instruction)
                state.commands.append(command)
                self._depend(state, command)
                if instruction.name.upper() in ("ADD", "COPY", "RUN", "WORKDIR"):
                    state.total += 1
        self._refuse_cycles()
        if len(self.states) == 1:
            self.states[0].name = ""

    def _depend(self, state: State, command: Command) -> None:
        for source in command.sources:
            state.deps[source] = command.instruction
            if source.unregistered and source not in self.used_from_args:
                self.used_from_args[source] = {}
                self.add(source)

    def _command(self, instruction: Instruction) -> Command:
        if isinstance(instruction, Copy) and instruction.from_:
            with at(instruction.location):
                return Command(instruction, (self._copy_source(instruction),))
        if isinstance(instruction, Run) and instruction.mounts:
            sources = tuple(self._mount_source(check_mount(mount), instruction) for mount in instruction.mounts)
            return Command(instruction, sources)
        return Command(instruction)

    def _copy_source(self, copy: Copy) -> State:
        name = copy.from_
        if self.expander.word(name, {}).text != name:
            raise Fault(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from "
                "global scope as a workaround",
                mark=f"--from={name}",
            )
        index = _index(name)
        if index is not None:
            if not 0 <= index < len(self.states):
                raise Fault(f"invalid stage index {index}", mark=f"--from={name}")
            return self.states[index]
        found = self.by_name.get(name.lower())
        return found if found is not None else self._image_state(name, copy)

    def _mount_source(self, name: str, run: Run) -> State:
        name = name or SCRATCH
        found = self.by_name.get(name.lower())
        return found if found is not None else self._image_state(name, run)

    def _image_state(self, name: str, instruction: Instruction) -> State:
        stage = Stage(name="FROM", location=instruction.location, source=f"FROM {name}", base_name=name)
        return State(stage, -1, "", name, unregistered=True)

    def _refuse_cycles(self) -> None:
        done: set[State] = set()
        for start in self.states:
            if start in done or not start.deps:
                continue
            path: dict[State, None] = {start: None}
            stack = [(start, iter(start.deps.items()))]
            while stack:
                state, children = stack[-1]
                for child, instruction in children:
                    if child in path:
                        name = start.stage.stage_name or start.name
                        message = f"circular dependency detected on stage: {name}"
                        raise Fault(message, instruction.location, mark=getattr(instruction, "from_", ""))
                    if child not in done:
                        path[child] = None
                        stack.append((child, iter(child.deps.items())))
                        break
                else:
                    stack.pop()
                    done.add(state)
                    path.pop(state)

    # --- reaching, and what base images bring in

    def reach(self, target: State) -> None:
        """Mark everything that the target needs."""
        stack = [target]
        seen: set[State] = set()
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            state.reachable = True
            if state.base is not None:
                stack.append(state.base)
            stack.extend(state.deps)

    def read_triggers(self, state: State) -> bool:
        """Put a base's ONBUILD instructions before a stage's own.  True: there are new dependencies."""
        if state.base is None:
            triggers = list(state.image.on_build)
            state.image.on_build = ()
            state.image.snapshot = None
        elif not state.triggers_read:
            triggers = [c.instruction.expression for c in state.base.commands if isinstance(c.instruction, Onbuild)]
        else:
            return False
        state.triggers_read = True
        if not triggers:
            return False
        if len(triggers) > MAX_TRIGGERS:
            raise Fault(f"the base image has {len(triggers):,} ONBUILD triggers", state.stage.location)
        commands = [self._trigger(state, text) for text in triggers]
        state.commands[:0] = commands
        state.total += len(commands)
        return any(command.sources for command in commands)

    def _trigger(self, state: State, text: str) -> Command:
        try:
            nodes = lex(text).nodes
            if len(nodes) != 1:
                raise Fault("onbuild trigger should be a single expression")
            nodes[0].start, nodes[0].end = state.stage.location.start, state.stage.location.end
            instruction = read_instruction(nodes[0])
            if isinstance(instruction, Stage):
                raise Fault("FROM isn't allowed as an ONBUILD trigger")
            command = self._command(replace(instruction, location=state.stage.location))
        except Fault as fault:
            fault.location = state.stage.location
            fault.hint = fault.hint or f"it comes from an ONBUILD of the base: {text[:200]}"
            raise
        command.on_build = True
        self._depend(state, command)
        return command


def context_name(name: str) -> str:
    """A context's name as it is looked up: short, without ``:latest``."""
    try:
        familiar = parse_named(name).familiar
    except ValueError:
        return name
    return familiar.removesuffix(":latest")


def default_args(options: LowerOptions, build_args: Mapping[str, str], target: str) -> dict[str, str]:
    """The automatic platform arguments; build arguments may override them."""
    build, wanted = options.build_platform, options.platform
    args = {
        "BUILDPLATFORM": str(build), "BUILDOS": build.os, "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture, "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": format_all(wanted), "TARGETOS": wanted.os, "TARGETOSVERSION": wanted.os_version,
        "TARGETARCH": wanted.architecture, "TARGETVARIANT": wanted.variant, "TARGETSTAGE": target or "default",
    }  # fmt: skip
    return {key: build_args.get(key, value) for key, value in args.items()}


def meta_arguments(
    dockerfile: Dockerfile, expander: Expander, args: dict[str, str], build_args: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, MetaArg]]:
    """The ARGs before the first FROM, in order: (environment of FROM lines, what is known of each)."""
    args = dict(args)
    known: dict[str, MetaArg] = {}
    for arg in dockerfile.meta_args:
        for pair in arg.pairs:
            value, deps = build_args.get(pair.key), frozenset[str]()
            if value is None and pair.value is not None:
                with at(arg.location):
                    found = expander.word(pair.value, args)
                value = found.text
                deps = frozenset(found.matched)
                if pair.key in deps:
                    before = known.get(pair.key)
                    deps = (deps - {pair.key}) | (before.deps if before else frozenset())
            if value is not None:
                args.pop(pair.key, None)
                args[pair.key] = value
            known[pair.key] = MetaArg(pair, value or "", deps, arg.location)
    return args, known


def lint_default_bases(graph: Graph, defaults: dict[str, str]) -> None:
    """Base names with nothing but the defaults of the ARGs must be image names."""
    try:
        args, _ = meta_arguments(graph.dockerfile, graph.expander, defaults, {})
        for stage in graph.dockerfile.stages:
            name = graph.expander.word(stage.base_name, args).text
            try:
                parse_named(name)
            except ValueError:
                message = f"Default value for ARG {stage.base_name} results in empty or invalid base image name"
                graph.lint.warn(INVALID_DEFAULT_ARG, message, stage.location)
    except Fault:
        return  # the same fault comes again, where it counts


def new_graph(dockerfile: Dockerfile, options: LowerOptions, lint: Linter) -> Graph:
    """The graph with its global arguments, and no states yet.  Raises Fault."""
    build_args = {key: value for key, value in options.build_args.items() if value is not None}
    expander = Expander(dockerfile.tree.escape, work=Work())
    graph = Graph(dockerfile, options, lint, expander, build_args=build_args)
    for written, context in options.contexts.items():
        name, separator, platform = written.partition("::")
        graph.contexts[context_name(name) + separator + platform] = (written, context)
    if not dockerfile.stages:
        last = dockerfile.tree.nodes[-1].location
        raise Fault("dockerfile contains no stages to build", last, hint="a stage begins with FROM")
    target = options.target or dockerfile.stages[-1].stage_name
    defaults = default_args(options, build_args, target)
    lint_default_bases(graph, defaults)
    graph.global_args, graph.meta_args = meta_arguments(dockerfile, expander, defaults, build_args)
    return graph
