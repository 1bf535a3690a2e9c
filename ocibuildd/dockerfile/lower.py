"""Stages → Plan: base images resolved, instructions turned into vertices, configs and history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..model.graph import HistoryItem, Location, Plan, StagePlan, Step
from ..model.oci import ImageConfig, Platform
from .baseref import parse_named
from .context import Context, context_patterns
from .epoch import settle_epoch
from .faults import Fault, at
from .gotext import to_utf8
from .instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    HealthcheckInstruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    Stage,
    Stopsignal,
    User,
    Volume,
    Workdir,
)  # fmt: skip
from .lint import BASE_IMAGE_PLATFORM, Linter, checks_of_text, parse_checks
from .lint_text import lint_before, lint_continuations, lint_description, lint_stages
from .lower_config import (
    enter,
    lower_arg,
    lower_cmd,
    lower_entrypoint,
    lower_env,
    lower_expose,
    lower_healthcheck,
    lower_label,
    lower_maintainer,
    lower_onbuild,
    lower_shell,
    lower_stopsignal,
    lower_user,
    lower_volume,
    lower_workdir,
)  # fmt: skip
from .lower_copy import lower_transfer
from .lower_run import lower_run
from .options import OCI_LAYOUT, LowerOptions, NamedContext, ResolvedImage, is_scratch
from .platforms import format_all, normalize
from .stages import new_graph
from .state import DEFAULT_PATH, SCRATCH, Budget, Command, Image, State

Known = Mapping[tuple[str, str], ResolvedImage]
Missing = list[tuple[str, Platform]]

PREDEFINED = frozenset(
    name
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (proxy, proxy.lower())
) | {"SOURCE_DATE_EPOCH"}
"""Build arguments that count as used without an ARG; so do BUILDKIT_* and the platform arguments."""
FROM_CONTEXT = "buildkit.exporter.image.v0"
"""BuildKit's comment on history that its exporter adds for layers that no instruction made."""


def checks_of(dockerfile: Dockerfile, options: LowerOptions) -> Linter:
    """The linter that the file, or the build argument that overrides it, asks for.  Raises Fault."""
    given = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK")
    return Linter(parse_checks(given) if given is not None else checks_of_text(dockerfile.source.text))


def lint_as_written(dockerfile: Dockerfile, lint: Linter) -> None:
    """The checks of the text alone."""
    lint_continuations(dockerfile.tree, lint)
    for node in dockerfile.tree.nodes:
        lint_before(node, lint)
        lint_description(node, lint)
    lint_stages(dockerfile.stages, lint)


class Lowering:
    """One Dockerfile with one set of options on its way to a Plan.

    ``all_stages``: unneeded stages too (checks).  Images that aren't known are in ``missing``; what stands
    on them is lowered as if they were empty."""

    def __init__(
        self, dockerfile: Dockerfile, options: LowerOptions, known: Known, *, lint: Linter | None = None,
        all_stages: bool = False,
    ) -> None:  # fmt: skip
        self.dockerfile = dockerfile
        self.options = options
        self.known = known
        self.all_stages = all_stages
        self.lint = lint if lint is not None else checks_of(dockerfile, options)
        self.missing: Missing = []
        self.named: dict[str, Stage] = {}
        if lint is None:
            lint_as_written(dockerfile, self.lint)
        self.graph = new_graph(dockerfile, options, self.lint)
        self.context = Context(self.graph, options, Budget(), settle_epoch(self.graph), context_patterns(options))

    # --- base images

    def resolve(self) -> State:
        """Make the graph, and find each needed stage's base.  Gives the target.  Raises Fault."""
        graph = self.graph
        graph.build()
        target = graph.target()
        graph.connect()
        while True:
            graph.reach(target)
            if self.options.compat == "docker":  # the classic builder builds whatever stands before the target
                for state in [each for each in graph.states if each.index < target.index]:
                    graph.reach(state)
            for state in list(graph.states):
                if state.base is None and not state.dispatched and not state.resolved:
                    self._resolve_base(state)
            news = False
            for state in list(graph.states):
                if state.reachable and not state.pending:
                    news = graph.read_triggers(state) or news
            if not news:
                return target

    def _resolve_base(self, state: State) -> None:
        needed = state.reachable or self.all_stages
        state.resolved = needed
        if state.base_name == SCRATCH and state.context is None:
            state.image = Image.scratch(self.options.platform)
            state.platform = self.options.platform
            state.dispatched = state.unregistered
            return
        with at(state.stage.location):
            try:
                ref = parse_named(state.base_name).with_default_tag()
            except ValueError as error:
                message = f'failed to parse stage name "{to_utf8(state.base_name)}": {error}'
                raise Fault(message, mark=state.stage.base_name) from None
            if needed:
                self._load_base(state, str(ref))
        if state.unregistered:
            state.dispatched = True

    def _load_base(self, state: State, ref: str) -> None:
        platform = state.platform or self.options.platform
        if state.context is not None:
            state.dispatched = True
            self._load_context(state, state.context_name, state.context, platform, replaces_stage=True)
            return
        found = self.graph.named_context(ref, platform)
        if found is not None:
            self._load_context(state, found[0], found[1], platform, replaces_stage=False)
            return
        image = self._image(state, ref, platform)
        if image is None:
            return
        self._use_image(state, image, platform, None)

    def _image(self, state: State, ref: str, platform: Platform) -> ResolvedImage | None:
        image = self.known.get((ref, str(platform)))
        if image is None:
            self.missing.append((ref, platform))
            self.named.setdefault(ref, state.stage)
            state.pending = True
            state.platform = platform
            state.image = Image.scratch(platform)
        return image

    def _use_image(self, state: State, image: ResolvedImage, platform: Platform, name: str | None) -> None:
        config = image.config
        state.base_image = config
        state.image = Image.of(config)
        if state.platform is None and self.options.implicit_platform:
            platform = self._detected(config, platform)
        state.platform = platform
        digest = "" if "@" in image.ref else f"@{image.digest}"
        name = name or self.context.prefix(state, f"FROM {image.ref}{digest}")
        state.base_vertex = self.context.image_root(image, platform, name, state.stage.location)
        state.vertex = state.base_vertex
        self._check_platform(state, config, platform)

    def _detected(self, config: ImageConfig, platform: Platform) -> Platform:
        """The build platform, where the image is that and isn't the target."""
        for candidate in (platform, self.options.build_platform):
            if (candidate.os, candidate.architecture) == (config.os, config.architecture):
                return candidate
        return platform

    def _check_platform(self, state: State, config: ImageConfig, platform: Platform) -> None:
        if (platform.os, platform.architecture) != (config.os, config.architecture):
            message = (
                f'Base image {state.base_name} was pulled with platform "{format_all(normalize(config.platform))}", '
                f'expected "{format_all(normalize(platform))}" for current build'
            )
            self.lint.warn(BASE_IMAGE_PLATFORM, message, state.stage.location)

    def _load_context(
        self, state: State, name: str, context: NamedContext, platform: Platform, *, replaces_stage: bool
    ) -> None:
        if context.kind not in ("image", "oci-layout") or is_scratch(context):
            state.image = Image.scratch(platform)
            state.platform = platform
            if context.kind != "image":
                state.base_vertex = state.vertex = self.context.named_root(name, context)
                if not replaces_stage and not state.unregistered:
                    self._stand_on(state, name)
            return
        if context.kind == "image":
            try:
                ref = str(parse_named(context.value.removeprefix("docker-image://")).with_default_tag())
            except ValueError as error:
                raise Fault(f"--build-context {name}: {context.value}: {error}") from None
        else:
            ref = OCI_LAYOUT + context.value.removeprefix(OCI_LAYOUT)
        image = self._image(state, ref, platform)
        if image is not None:
            self._use_image(state, image, platform, f"[context {name}] {image.ref}")
        if replaces_stage:
            state.dispatched = True

    def _stand_on(self, state: State, name: str) -> None:
        """A stage begins with the files of a context: they are its root file system, with a line of history."""
        if state.vertex is None or state.history:
            return
        vertex = self.context.as_root(state.vertex, name)
        state.base_vertex = state.vertex = vertex
        state.history.append(HistoryItem(f"[context {name}] load from client", vertex, comment=FROM_CONTEXT))

    def _stand_on_context(self, state: State) -> None:
        """What replaces a stage is its files while a COPY reads them, and a root file system for what is FROM it."""
        if state.context is not None and state.context.kind not in ("image", "oci-layout"):
            self._stand_on(state, state.context_name)

    # --- instructions

    def dispatch(self) -> None:
        """Lower every needed stage, in the file's order.  Raises Fault."""
        for state in self.graph.states:
            if state.unregistered or state.dispatched:
                continue
            if state.reachable or self.all_stages:
                self._dispatch_stage(state)

    def _dispatch_stage(self, state: State) -> None:
        self._begin(state)
        state.dispatched = True
        budget = self.context.budget
        number, total = 1, 1 + len(state.commands)
        self._step(state, number, total, state.stage.source, state.stage.location, 0)
        for command in state.commands:
            instruction = command.instruction
            before = len(state.history)
            state.running_trigger = command.on_build
            lint = self.lint.for_comments(instruction.comments)
            with at(instruction.location):
                _LOWER[type(instruction)](self.context, state, command, lint)
            number += 1
            self._step(state, number, total, instruction.source, instruction.location, before)
        budget.spend(len(state.commands))

    def _step(self, state: State, number: int, total: int, text: str, location: Any, before: int) -> None:
        made = any(item.vertex is not None for item in state.history[before:]) if before or number > 1 else False
        state.steps.append(
            Step(
                state.index, state.name, number, total, to_utf8(text), location, state.vertex,
                state.image.config(self.context.budget), len(state.history), made,
            )
        )  # fmt: skip

    def _begin(self, state: State) -> None:
        """What the stage starts with: the base's file system, config, environment."""
        base = state.base
        if base is not None:
            self._stand_on_context(base)
            self.context.budget.spend(len(base.history) + len(base.env) + len(base.image.env))
            state.platform = base.platform
            state.image = base.image.clone()
            state.base_image, state.base_vertex, state.vertex = base.base_image, base.base_vertex, base.vertex
            state.env, state.cwd, state.user = dict(base.env), base.cwd, base.user
            state.build_args += base.build_args
            state.history = list(base.history)
            state.workdir_set = base.workdir_set
            state.pending = base.pending
        platform = state.platform = state.platform or self.options.platform
        image = state.image
        if "PATH" not in image.env_keys and platform.os != "windows":
            image.set_env("PATH", DEFAULT_PATH)
            image.snapshot = None
        for entry in image.env:
            key, _, value = entry.partition("=")
            state.set_env(key, value)
        if image.working_dir:
            enter(state, image.working_dir)
        if image.user:
            state.user = image.user

    # --- the result

    def plan(self, target: State) -> Plan:
        """Everything needed, as one value.  Raises Fault for ``error=true`` with warnings."""
        budget = self.context.budget
        options = self.options
        if options.labels and options.compat != "docker":
            target.image.labels = {**(target.image.labels or {}), **options.labels}
            target.image.snapshot = None
        failure = self.lint.failure()
        if failure is not None:
            raise failure
        if not target.steps:  # a named context stands for the stage
            self._stand_on_context(target)
            self._step(target, 1, 1, target.stage.source, target.stage.location, 0)
        if options.labels and options.compat == "docker":
            self._label(target)
        self._settle_platform(target)
        stages: list[StagePlan] = []
        index = 0
        for state in self.graph.states:
            if state.unregistered or not state.steps:
                continue
            if state is target:
                index = len(stages)
            stages.append(
                StagePlan(
                    state.index, state.name, state.base_image, state.image.image_config(budget),
                    tuple(state.history), state.vertex, tuple(state.steps), state.base_vertex,
                )
            )  # fmt: skip
        return Plan(
            tuple(self.context.vertices), tuple(stages), index, target.image_platform(), tuple(self.lint.warnings),
            self.context.epoch, self.unused_args(), tuple(self.context.secrets),
        )  # fmt: skip

    def _label(self, target: State) -> None:
        """The request's labels as instructions at the end, as the classic builder has them."""
        for key, value in sorted(self.options.labels.items()):
            text, before = f"LABEL {key}={value}", len(target.history)
            target.image.labels = {**(target.image.labels or {}), key: value}
            target.image.snapshot = None
            target.commit(self.context.budget, text)
            number = len(target.steps) + 1
            self._step(target, number, number, text, Location(0, 0), before)

    def _settle_platform(self, target: State) -> None:
        image, wanted = target.image, self.options.platform
        if not self.options.implicit_platform:
            same = (wanted.os, wanted.architecture) == (image.os, image.architecture)
            image.os, image.architecture = wanted.os, wanted.architecture
            if wanted.variant or not same:
                image.variant = wanted.variant
            if wanted.os_version or not same:
                image.os_version = wanted.os_version
            if wanted.os_features:
                image.os_features = wanted.os_features
        settled = normalize(target.image_platform())
        image.os, image.architecture, image.variant = settled.os, settled.architecture, settled.variant
        image.os_features = settled.os_features

    def unused_args(self) -> tuple[str, ...]:
        """Build arguments that no ARG takes."""
        declared = set(self.graph.meta_args)
        for stage in self.dockerfile.stages:
            for instruction in stage.commands:
                if isinstance(instruction, Arg):
                    declared.update(pair.key for pair in instruction.pairs)
        return tuple(
            name
            for name in self.options.build_args
            if name not in declared
            and name not in PREDEFINED
            and not name.startswith("BUILDKIT_")
            and name not in self.graph.global_args
        )


def _simple(function: Callable[..., None]) -> Callable[[Context, State, Command, Linter], None]:
    def lower(context: Context, state: State, command: Command, lint: Linter) -> None:
        function(context, state, command.instruction, lint)

    return lower


_LOWER: dict[type, Callable[[Context, State, Command, Linter], None]] = {
    Add: lower_transfer,
    Copy: lower_transfer,
    Run: lower_run,
    Arg: _simple(lower_arg),
    Cmd: _simple(lower_cmd),
    Entrypoint: _simple(lower_entrypoint),
    Env: _simple(lower_env),
    Expose: _simple(lower_expose),
    HealthcheckInstruction: _simple(lower_healthcheck),
    Label: _simple(lower_label),
    Maintainer: _simple(lower_maintainer),
    Onbuild: _simple(lower_onbuild),
    Shell: _simple(lower_shell),
    Stopsignal: _simple(lower_stopsignal),
    User: _simple(lower_user),
    Volume: _simple(lower_volume),
    Workdir: _simple(lower_workdir),
}
