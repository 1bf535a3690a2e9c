"""RUN: the argv, the environment, here-documents and mounts."""

from __future__ import annotations

from typing import Literal, cast

from ..model.graph import InlineFile, Mount
from ..model.graph import Run as RunOp
from ..model.patterns import clean
from .context import Context
from .faults import Fault
from .gotext import quote, to_utf8, trim
from .instructions import Run
from .lexer import chomp, maybe_heredoc
from .lint import Linter
from .lower_config import with_shell
from .mounts import MountFlag, parse_mount
from .options import DEFAULT_HOSTNAME
from .state import Command, State

PIPES = "/dev/pipes/"
"""Where a here-document that begins with ``#!`` lies while it runs."""
SECRETS = "/run/secrets/"
AGENTS = "/run/buildkit/ssh_agent."
Network = Literal["default", "none", "host"]
SHELL = ("/bin/sh", "-c")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


def lower_run(context: Context, state: State, command: Command, lint: Linter) -> None:
    """A RUN step.  Raises Fault."""
    run = cast(Run, command.instruction)
    inputs: list[int] = [context.root(state)]
    mounts = _mounts(context, state, command, inputs, lint)
    args, files, summary = _command(state, run)
    if not args and context.options.compat == "docker":
        args = (*SHELL, "")  # the classic builder runs what the image runs, which is a shell without input
    shown = " ".join(args)
    args = with_shell(state, args) if run.shell_form else args
    masks = {mount.env: "****" for mount in mounts if mount.type == "secret" and mount.env}
    name = context.step_name(state, run.source + summary, masks, raw=True)
    op = RunOp(
        args=args, env=_env(context, state, mounts), cwd=state.cwd, user=state.user, mounts=tuple(mounts),
        network=_network(context, run), security="insecure" if run.security == "insecure" else "sandbox",
        devices=run.devices, hostname=_hostname(context), files=files, proxy_env=proxy_env(context),
        shell=to_utf8(shown),
    )  # fmt: skip
    state.vertex = context.vertex(
        op, tuple(inputs), name, ignore_cache=state.ignore_cache, location=run.location
    )
    hidden = frozenset[str]()
    if context.options.compat == "docker":  # the classic builder leaves out what an ENV overrides
        hidden = frozenset(state.image.env_keys)
    created_by = "RUN " + _history(state, args, hidden)
    state.commit(context.budget, created_by, state.vertex, buildkit=True)


def _command(state: State, run: Run) -> tuple[tuple[str, ...], tuple[InlineFile, ...], str]:
    """(arguments before the SHELL, files to mount, what the step's name shows of the here-document)."""
    if not run.files:
        return run.args, (), ""
    if len(run.args) != 1 or not run.shell_form:
        raise Fault(f"parsing produced an invalid run command: {' '.join(run.args)}")
    if maybe_heredoc(run.args[0]) is None:
        # The shell handles it: give it the whole text back.
        text = run.args[0] + "".join(f"\n{file.data}{file.name}" for file in run.files)
        return (text,), (), ""
    file = run.files[0]
    data = chomp(file.data) if file.chomp else file.data
    lines = trim(file.data).replace("\r\n", "\n").split("\n")
    summary = f" ({lines[0]}{'...' if len(lines) > 1 else ''})"
    if state.image.os == "windows" or not data.startswith("#!"):
        return (data,), (), summary
    if "/" in file.name or file.name in (".", ".."):
        raise Fault(f"heredoc {quote(file.name)}: a script's delimiter can't be a path", mark=file.name)
    body = data.encode("utf-8", "surrogateescape")
    return (PIPES + file.name,), (InlineFile(file.name, body, 0o755),), summary


def _network(context: Context, run: Run) -> Network:
    return cast(Network, run.network) if run.network != "default" else context.options.network or "default"


def _hostname(context: Context) -> str:
    return (
        context.options.hostname or context.graph.build_args.get("BUILDKIT_SANDBOX_HOSTNAME") or DEFAULT_HOSTNAME
    )


def _env(context: Context, state: State, mounts: list[Mount]) -> tuple[tuple[str, str], ...]:
    env = state.run_env(context.budget)
    agent = next((mount for mount in mounts if mount.type == "ssh"), None)
    if agent is not None and "SSH_AUTH_SOCK" not in state.env:
        env = (*env, ("SSH_AUTH_SOCK", agent.target))
    return env


def proxy_env(context: Context) -> tuple[tuple[str, str], ...]:
    """The proxies that were given as build arguments: visible to steps, in no key and no history."""
    out: list[tuple[str, str]] = []
    given = sorted(context.graph.build_args.items())
    for name in _PROXIES:
        if context.options.compat == "docker":
            # The classic builder hands each spelling on as it is given.
            out += (pair for pair in given if pair[0] in (name, name.upper()) and pair[1])
            continue
        value = next((value for key, value in reversed(given) if key.lower() == name), None)
        if value:
            out += ((name.upper(), value), (name, value))
    return tuple(out)


def _history(state: State, args: tuple[str, ...], hidden: frozenset[str]) -> str:
    """``|2 A=1 B=2 /bin/sh -c make``: the declared arguments, but for hidden ones, with the values they have here."""
    values: dict[str, str] = {}
    for pair in state.build_args:
        if pair.key in hidden:
            continue
        value = state.env.get(pair.key)
        values[pair.key] = (pair.value or "") if value is None else value
    text = " ".join(args)
    if not values:
        return text
    return f"|{len(values)} " + " ".join([*(f"{key}={value}" for key, value in values.items()), text])


# --- mounts -----------------------------------------------------------------------------------------


def _mounts(
    context: Context, state: State, command: Command, inputs: list[int], lint: Linter
) -> list[Mount]:
    run = cast(Run, command.instruction)
    expand = context.expand(state, run, lint)
    out: list[Mount] = []
    agents = 0
    # All are read before any is used, as BuildKit does, so that a later one's fault comes first.
    flags = [parse_mount(text, expand) for text in run.mounts]
    for flag, source in zip(flags, command.sources, strict=True):
        if flag.from_ and not source.dispatched:  # also of a tmpfs, which has no use for it
            raise Fault(
                f"cannot mount from stage {quote(flag.from_)} to {quote(flag.target)}, stage needs to be "
                "defined before current command",
                mark=f"from={flag.from_}",
            )
        match flag.type:
            case "secret":
                out.append(_secret(context, state, flag, run))
            case "ssh":
                out.append(_agent(context, state, flag, run, agents))
                agents += 1
            case _:
                out.append(_files(context, state, flag, source, inputs))
    return out


def _target(state: State, text: str) -> str:
    """Relative to the working directory."""
    target = clean(text if text.startswith("/") else f"/{state.cwd}/{text}")
    if target == "/":
        raise Fault(f"invalid mount target {quote(target)}", mark="target=", hint="a mount needs a target")
    return target


def _secret(context: Context, state: State, flag: MountFlag, run: Run) -> Mount:
    identity = flag.source or flag.id or clean(flag.target).rpartition("/")[2]
    target = flag.target
    if flag.env is None and not target:
        target = SECRETS + identity.rstrip("/").rpartition("/")[2]
    context.secrets.setdefault(identity, (flag.required, run.location))
    return Mount(
        "secret", _target(state, target) if target else "", id=identity,
        env="" if flag.env is None else flag.env or identity, required=flag.required, mode=flag.mode,
        uid=flag.uid or 0, gid=flag.gid or 0,
    )  # fmt: skip


def _agent(context: Context, state: State, flag: MountFlag, run: Run, number: int) -> Mount:
    if flag.source:
        raise Fault("ssh does not support source", mark="source=")
    identity = flag.id or "default"
    target = _target(state, flag.target) if flag.target else f"{AGENTS}{number}"
    context.ssh.setdefault(identity, (flag.required, run.location))
    return Mount(
        "ssh", target, id=identity, required=flag.required, mode=flag.mode, uid=flag.uid or 0, gid=flag.gid or 0
    )


def _files(context: Context, state: State, flag: MountFlag, source: State, inputs: list[int]) -> Mount:
    """bind, cache and tmpfs."""
    index: int | None = None
    if flag.type == "bind" or (flag.type == "cache" and flag.from_):
        if not flag.from_:
            index = _input(inputs, context.main_context())
        else:
            index = _input(inputs, context.root(source))
    namespace = context.options.cache_namespace or context.graph.build_args.get("BUILDKIT_CACHE_MOUNT_NS", "")
    cache_id = f"{namespace}/{flag.id or clean(flag.target)}" if flag.type == "cache" else ""
    return Mount(
        flag.type, _target(state, flag.target), index, clean("/" + flag.source), flag.readonly, to_utf8(cache_id),
        flag.sharing or "shared", flag.size, mode=flag.mode, uid=flag.uid or 0, gid=flag.gid or 0,
    )  # fmt: skip


def _input(inputs: list[int], vertex: int) -> int:
    """The place of a vertex among the inputs; 0 is the root file system, even where it is the same."""
    try:
        return inputs.index(vertex, 1)
    except ValueError:
        inputs.append(vertex)
        return len(inputs) - 1
