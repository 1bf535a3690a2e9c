"""Instructions that change the image config only, and WORKDIR."""

from __future__ import annotations

from ..model.graph import Mkdir
from ..model.patterns import clean
from .context import NOT_IN_ENV, Context
from .faults import Fault
from .gotext import format_duration, plain_list, quote, quote_list, to_utf8
from .instructions import (
    Arg,
    ArgPair,
    Cmd,
    CommandLine,
    Entrypoint,
    Env,
    Expose,
    HealthcheckInstruction,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
)  # fmt: skip
from .lint import JSON_ARGS, LEGACY_KEY_VALUE, MULTIPLE_INSTRUCTIONS, WORKDIR_RELATIVE, Linter
from .lint_text import lint_secret
from .modes import check_signal
from .ports import parse_ports
from .state import State


def lower_env(context: Context, state: State, env: Env, lint: Linter) -> None:
    expand = context.expand(state, env, lint)
    # One snapshot: no pair sees what another of this instruction sets.
    pairs = [(expand(pair.key), expand(pair.value)) for pair in env.pairs]
    text = "ENV"
    for pair, (key, value) in zip(env.pairs, pairs, strict=True):
        _legacy(env, pair.no_delim, lint)
        lint_secret("ENV", key, env.location, lint)
        key, value = to_utf8(key), to_utf8(value)
        text += f" {key}={value}"
        state.set_env(key, value)
        state.image.set_env(key, value)
    state.image.snapshot = None
    state.commit(context.budget, text)


def _legacy(instruction: Instruction, no_delim: bool, lint: Linter) -> None:
    if no_delim:
        name = instruction.name
        message = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
        lint.warn(LEGACY_KEY_VALUE, message, instruction.location)


def lower_label(context: Context, state: State, label: Label, lint: Linter) -> None:
    expand = context.expand(state, label, lint)
    labels = dict(state.image.labels or {})
    text = "LABEL"
    for pair in label.pairs:
        key, value = to_utf8(expand(pair.key)), to_utf8(expand(pair.value))
        _legacy(label, pair.no_delim, lint)
        labels[key] = value
        text += f" {key}={value}"
    context.budget.spend(len(labels))
    state.image.labels = labels
    state.image.snapshot = None
    state.commit(context.budget, text)


def lower_maintainer(context: Context, state: State, maintainer: Maintainer, _lint: Linter) -> None:
    state.image.author = to_utf8(maintainer.author)
    state.commit(context.budget, f"MAINTAINER {maintainer.author}")


def lower_onbuild(context: Context, state: State, onbuild: Onbuild, _lint: Linter) -> None:
    context.budget.spend(len(onbuild.expression))
    state.image.on_build = (*state.image.on_build, to_utf8(onbuild.expression))
    state.image.snapshot = None
    if context.options.compat == "docker":
        state.commit(context.budget, f"ONBUILD {onbuild.expression}")


def with_shell(state: State, args: tuple[str, ...]) -> tuple[str, ...]:
    """The shell form: SHELL, and one text."""
    shell = state.image.shell
    if not shell:
        shell = ("cmd", "/S", "/C") if state.image.os == "windows" else ("/bin/sh", "-c")
    return (*shell, " ".join(args))


def _once(state: State, kind: str, instruction: Instruction, lint: Linter) -> None:
    before = state.used.get(kind)
    if before is not None:
        message = (
            f"Multiple {instruction.name} instructions should not be used in the same stage "
            "because only the last one will be used"
        )
        lint.warn(MULTIPLE_INSTRUCTIONS, message, before.location)
    state.used[kind] = instruction


def _command(state: State, kind: str, line: CommandLine, lint: Linter) -> tuple[str, ...]:
    _once(state, kind, line, lint)
    if not line.shell_form:
        return tuple(to_utf8(arg) for arg in line.args)
    if not state.image.shell:
        message = (
            f"JSON arguments recommended for {line.name} to prevent unintended behavior related to OS signals"
        )
        lint.warn(JSON_ARGS, message, line.location)
    return tuple(to_utf8(arg) for arg in with_shell(state, line.args))


def lower_cmd(context: Context, state: State, cmd: Cmd, lint: Linter) -> None:
    state.image.cmd = _command(state, "cmd", cmd, lint)
    state.image.args_escaped = True
    state.image.snapshot = None
    state.commit(context.budget, f"CMD {quote_list(state.image.cmd)}")


def lower_entrypoint(context: Context, state: State, entrypoint: Entrypoint, lint: Linter) -> None:
    state.image.entrypoint = _command(state, "entrypoint", entrypoint, lint)
    if "cmd" not in state.used:
        state.image.cmd = None  # an inherited CMD was meant for another ENTRYPOINT
    state.image.snapshot = None
    state.commit(context.budget, f"ENTRYPOINT {quote_list(state.image.entrypoint)}")


def lower_healthcheck(context: Context, state: State, check: HealthcheckInstruction, lint: Linter) -> None:
    _once(state, "healthcheck", check, lint)
    health = check.health
    state.image.healthcheck = health
    state.image.snapshot = None
    if context.options.compat == "docker":
        times = [f'"{format_duration(each)}"' for each in (health.interval, health.timeout, health.start_period)]
        test = " ".join(quote(each) for each in health.test or ())
        retries = quote(chr(min(health.retries or 0, 0xD7FF)))[1:-1]  # Go prints the struct with %q: a rune
        text = f"HEALTHCHECK &{{[{test}] {' '.join(times)} '{retries}'}}"
        state.commit(context.budget, text)
        return
    state.commit(
        context.budget,
        f"HEALTHCHECK {{Test:{plain_list(health.test)} Interval:{format_duration(health.interval)} "
        f"Timeout:{format_duration(health.timeout)} StartPeriod:{format_duration(health.start_period)} "
        f"StartInterval:{format_duration(health.start_interval)} Retries:{health.retries}}}",
    )


def lower_expose(context: Context, state: State, expose: Expose, lint: Linter) -> None:
    specs: list[str] = []
    for port in expose.ports:
        specs += context.graph.expander.expand(port, state.env).words
    ports = parse_ports(specs, expose.location, lint, context.budget)
    known = dict(state.image.exposed_ports or {})
    known.update((port, {}) for port in ports)
    context.budget.spend(len(known) + 10 * len(ports))
    state.image.exposed_ports = known
    state.image.snapshot = None
    classic = context.options.compat == "docker"
    state.commit(context.budget, "EXPOSE " + (" ".join(sorted(specs)) if classic else plain_list(ports)))


def lower_user(context: Context, state: State, user: User, lint: Linter) -> None:
    name = context.expand(state, user, lint)(user.user)
    state.user = name
    state.image.user = to_utf8(name)
    state.image.snapshot = None
    state.commit(context.budget, f"USER {name}")


def lower_volume(context: Context, state: State, volume: Volume, lint: Linter) -> None:
    expand = context.expand(state, volume, lint)
    paths = [expand(path) for path in volume.paths]
    if not all(paths):
        raise Fault("VOLUME specified can not be an empty string")
    known = dict(state.image.volumes or {})
    known.update((to_utf8(path), {}) for path in paths)
    context.budget.spend(len(known))
    state.image.volumes = known
    state.image.snapshot = None
    state.commit(context.budget, f"VOLUME {plain_list(paths)}")


def lower_stopsignal(context: Context, state: State, stop: Stopsignal, lint: Linter) -> None:
    signal = check_signal(context.expand(state, stop, lint)(stop.signal))
    state.image.stop_signal = signal
    state.image.snapshot = None
    state.commit(context.budget, f"STOPSIGNAL {signal}")


def lower_shell(context: Context, state: State, shell: Shell, _lint: Linter) -> None:
    state.image.shell = tuple(to_utf8(arg) for arg in shell.args)
    state.image.snapshot = None
    state.commit(context.budget, f"SHELL {plain_list(shell.args)}")


def lower_arg(context: Context, state: State, arg: Arg, lint: Linter) -> None:
    graph = context.graph
    texts: list[str] = []
    for pair in arg.pairs:
        lint_secret("ARG", pair.key, arg.location, lint)
        value = graph.build_args.get(pair.key)
        if value is None and pair.value is not None:
            value = context.expand_word(graph.expander, state, arg, lint, pair.value)
        elif value is None:
            value = graph.global_args.get(pair.key)
        if value is not None:
            value = to_utf8(value)
            if pair.key not in NOT_IN_ENV:
                state.set_env(pair.key, value)
        state.build_args.append(ArgPair(pair.key, value, pair.comment))
        shown = value
        if context.options.compat == "docker":  # the classic builder repeats what is written
            shown = None if pair.value is None else to_utf8(pair.value)
        texts.append(pair.key if shown is None else f"{pair.key}={shown}")
    state.commit(context.budget, "ARG " + " ".join(texts))


def enter(state: State, path: str) -> None:
    """Make ``path`` the working directory, relative to the one before."""
    before = state.image.working_dir or "/"
    before = before if before.startswith("/") else clean("/" + before)
    path = path or before
    if not path.startswith("/"):
        path = clean(f"{before}/{path}")
    state.image.working_dir = to_utf8(path)
    state.image.snapshot = None
    state.cwd = path


def lower_workdir(context: Context, state: State, workdir: Workdir, lint: Linter) -> None:
    path = context.expand(state, workdir, lint)(workdir.path)
    if not state.workdir_set and not path.startswith("/"):
        message = f"Relative workdir {quote(path)} can have unexpected results if the base image changes"
        lint.warn(WORKDIR_RELATIVE, message, workdir.location)
    state.workdir_set = True
    enter(state, path)
    vertex = None
    if state.cwd != "/":
        name = context.step_name(state, workdir.source)
        vertex = context.vertex(
            Mkdir(clean(state.cwd), state.image.user), (context.root(state),), name, location=workdir.location
        )
        state.vertex = vertex
    state.commit(context.budget, f"WORKDIR {state.cwd}", vertex)

