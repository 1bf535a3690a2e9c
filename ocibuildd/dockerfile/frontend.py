"""The door of the package: faults become DockerfileErrors here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..errors import DockerfileError
from ..model.graph import GitSource, HttpSource, Location, Plan, Warning  # noqa: A004
from ..model.oci import Platform
from .epoch import epoch_source
from .faults import Fault, Source, nearest
from .instructions import Arg, Dockerfile, Instruction, Stage
from .lexer import MAX_BYTES, detect_syntax, lex
from .lint import Checks, Linter, checks_of_text, parse_checks
from .lint_text import lint_before, lint_continuations, lint_description, lint_stages
from .lower import Known, Lowering, checks_of
from .options import LowerOptions
from .reader import read_stages
from .stages import new_graph
from .syntax import Tree

BUILTIN_FRONTENDS = ("docker/dockerfile", "docker/dockerfile-upstream", "dockerfile.v0")
"""``# syntax=`` images whose language is ours."""


@contextmanager
def _door(source: Source) -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        raise source.error(fault) from None
    except RecursionError:  # nothing recurses with the input's depth; a belt to the braces
        raise source.error(Fault("the Dockerfile is nested too deep")) from None


def _decode(data: bytes, filename: str) -> Source:
    if len(data) > MAX_BYTES:
        fault = Fault(f"a Dockerfile of {len(data):,} bytes, at most {MAX_BYTES:,} are taken")
        raise Source(filename, "").error(fault)
    return Source(filename, data.decode("utf-8", "surrogateescape"))


def parse(data: bytes, filename: str = "Dockerfile") -> Dockerfile:
    """Read a Dockerfile.  Raises DockerfileError."""
    source = _decode(data, filename)
    with _door(source):
        if not data:
            raise Fault("the Dockerfile cannot be empty")
        tree = lex(source.text)
        stages, meta_args = read_stages(tree.nodes)
    return Dockerfile(source, tree, stages, meta_args, _syntax_warnings(source, tree))


def _syntax_warnings(source: Source, tree: Tree) -> tuple[Warning, ...]:
    found = detect_syntax(source.text)
    if found is None:
        return ()
    name = found[0].partition("@")[0]
    repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
    if any(repository == known or repository.endswith("/" + known) for known in BUILTIN_FRONTENDS):
        return ()
    line = next((item.line for item in tree.directives if item.name == "syntax"), 1)
    message = f"the front end {name[:200]} can't be run: the built-in one (docker/dockerfile:1) reads this file"
    return (Warning("UnknownSyntax", message, Location(line, line)),)


def required_images(dockerfile: Dockerfile, options: LowerOptions, known: Known) -> list[tuple[str, Platform]]:
    """Images that ``lower`` needs and ``known`` lacks, each once.

    Canonical references, or ``oci-layout://…`` for a named context.  Raises DockerfileError."""
    with _door(dockerfile.source):
        lowering = Lowering(dockerfile, options, known, lint=Linter())
        lowering.resolve()
    return list(dict.fromkeys(lowering.missing))


def unresolved(dockerfile: Dockerfile, options: LowerOptions, known: Known, ref: str) -> tuple[str, dict[str, object]]:
    """Of an image that could not be had: (a hint, "" for none; where it is named, as an error's details)."""
    with _door(dockerfile.source):
        lowering = Lowering(dockerfile, options, known, lint=Linter())
        lowering.resolve()
    stage = lowering.named.get(ref)
    if stage is None:
        return "", {}
    names = [other.stage_name for other in dockerfile.stages if other.stage_name and other is not stage]
    near = nearest(stage.base_name, [*names, *options.contexts], fold=True)
    hint = f"did you mean the stage or context {near}?" if near else ""
    details = dockerfile.source.error(Fault("", stage.location, mark=stage.base_name)).details
    return hint, {**details, "instruction": _place(dockerfile, stage.location, options)}


def _place(dockerfile: Dockerfile, location: Location, options: LowerOptions) -> dict[str, object]:
    """An instruction among those up to the target: text, number, how many (ARGs before the first FROM and the
    labels that the request adds are counted), and those ARGs."""
    wanted: list[Instruction] = list(dockerfile.meta_args)
    for stage in dockerfile.stages:
        wanted += [stage, *stage.commands]
        if options.target and stage.stage_name == options.target.lower():
            break
    found = [number for number, each in enumerate(wanted, 1) if each.location == location]
    if not found:
        return {}
    return {
        "text": wanted[found[0] - 1].source, "number": found[0], "steps": len(wanted) + len(options.labels),
        "arguments": [arg.source for arg in dockerfile.meta_args],
    }


def lower(dockerfile: Dockerfile, options: LowerOptions, known: Known) -> Plan:
    """The Plan for one platform.  Raises DockerfileError; for an image that isn't known, too."""
    with _door(dockerfile.source):
        lowering = Lowering(dockerfile, options, known)
        lowering.lint.warnings[:0] = _wanted_syntax(dockerfile, options)
        target = lowering.resolve()
        if lowering.missing:
            ref, platform = lowering.missing[0]
            raise Fault(f"image {ref} for {platform} was not resolved")
        lowering.dispatch()
        arguments = tuple(arg.source for arg in dockerfile.meta_args)
        return replace(lowering.plan(target), arguments=arguments)


def _wanted_syntax(dockerfile: Dockerfile, options: LowerOptions) -> tuple[Warning, ...]:
    """The warning of an unknown ``# syntax=``, unless BUILDKIT_SYNTAX overrides it."""
    given = options.build_args.get("BUILDKIT_SYNTAX")
    if not given:
        return dockerfile.warnings
    return _syntax_warnings(Source("", f"# syntax={given}\n"), dockerfile.tree)


def check(dockerfile: Dockerfile, options: LowerOptions, known: Known) -> list[Warning]:
    """The build checks' findings; all stages where no target is given.

    Images that aren't known count as empty.  Raises DockerfileError where ``lower`` would."""
    with _door(dockerfile.source):
        lowering = Lowering(dockerfile, options, known, all_stages=not options.target)
        lowering.resolve()
        lowering.dispatch()
    return [*_wanted_syntax(dockerfile, options), *lowering.lint.warnings]


@dataclass(frozen=True, slots=True)
class Report:
    """What ``lint`` found: warnings, and the error that the build would end with (None: none).

    phase: where it came from, parse | instructions | convert | ""."""

    source: Source
    warnings: tuple[Warning, ...]
    error: DockerfileError | None
    phase: str = ""
    tree: Tree | None = None
    dockerfile: Dockerfile | None = None


def lint(data: bytes, options: LowerOptions, known: Known, *, filename: str = "Dockerfile") -> Report:
    """``--check`` on a text that may not even parse: findings up to the error, and the error."""
    try:
        source = _decode(data, filename)
    except DockerfileError as error:
        return Report(Source(filename, ""), (), error, "parse")
    phase, tree, dockerfile, linter = "parse", None, None, Linter()
    try:
        with _door(source):
            tree = lex(source.text)
            phase = "instructions"
            linter, broken = _linter(source, options)
            lint_continuations(tree, linter)
            stages, meta_args = _read_linted(tree, linter)
            dockerfile = Dockerfile(source, tree, stages, meta_args)
            phase = "convert"
            if broken is not None:
                raise broken
            lint_stages(stages, linter)
            lowering = Lowering(dockerfile, options, known, lint=linter, all_stages=not options.target)
            lowering.resolve()
            lowering.dispatch()
            failure = linter.failure()
            if failure is not None:
                raise failure
    except DockerfileError as error:
        return Report(source, tuple(linter.warnings), error, phase, tree, dockerfile)
    return Report(source, tuple(linter.warnings), None, "", tree, dockerfile)


def _linter(source: Source, options: LowerOptions) -> tuple[Linter, Fault | None]:
    """The linter, and what is wrong with the options of the checks: there are none then."""
    given = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK")
    try:
        return Linter(parse_checks(given) if given is not None else checks_of_text(source.text)), None
    except Fault as fault:
        return Linter(Checks(skip_all=True)), fault


def _read_linted(tree: Tree, linter: Linter) -> tuple[tuple[Stage, ...], tuple[Arg, ...]]:
    """``read_stages``, with the checks of every node before and after it is read."""
    try:
        result = read_stages(tree.nodes)
    except Fault as fault:
        last = fault.location.start if fault.location else 0
        for node in tree.nodes:
            lint_before(node, linter)
            if node.start >= last:
                break
            lint_description(node, linter)
        raise
    for node in tree.nodes:
        lint_before(node, linter)
        lint_description(node, linter)
    return result


def epoch_from(dockerfile: Dockerfile, options: LowerOptions) -> GitSource | HttpSource | None:
    """The source whose time is SOURCE_DATE_EPOCH, where the value names one: the build layer asks it, and
    gives ``LowerOptions.epoch``.  Raises DockerfileError."""
    with _door(dockerfile.source):
        return epoch_source(new_graph(dockerfile, options, checks_of(dockerfile, options)))
