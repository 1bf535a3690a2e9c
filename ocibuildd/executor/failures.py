"""What failed, in words that help."""

from __future__ import annotations

from ..errors import BuildError, StepFailed
from ..layer.missing import not_found
from ..model.graph import Run
from ..ports import Checksum, RunOutcome
from .diagnosis import named
from .source import Directory

NOT_FOUND = 127
"""How a shell ends that doesn't find a program."""


def missing_source(found: Checksum, directory: Directory | None) -> BuildError:
    """A source that isn't there, or that .dockerignore hides."""
    path = found["missing"][0]
    near, link = found.get("near", {}).get(path, []), found.get("links", {}).get(path, "")
    error = not_found(path, found["ignored"], near, link)
    where = "the build context" if directory is not None else "the source"
    error.message += "" if "hides it" in error.message or link else f" in {where}"
    error.details |= {"missing": list(found["missing"]), "ignored": dict(found["ignored"])}
    return error


def step_failed(
    op: Run, outcome: RunOutcome, tail: list[str], vertex: int, *, full: bool = False
) -> StepFailed:
    """The error of a RUN, with what probably mends it.  full: the disk was, when it ended."""
    command = " ".join(op.args)
    code, signal, reason = outcome["exit_code"], outcome["signal"], outcome["reason"]
    details: dict[str, object] = {
        "vertex": vertex, "reason": reason, "tail": tail, "command": " ".join(op.args),
    }
    if signal:
        details["signal"] = signal
        how = f"was killed by signal {signal}"
    else:
        details["exit_code"] = code
        how = f"did not complete successfully: exit code: {code}"
    if reason not in ("exit", "signal"):
        how = f"{how} ({outcome['message'] or reason})"
    hints = {
        "oom": "it ran out of memory: raise the limit (--memory)",
        "timeout": "it took longer than the time that a step may take",
        "disk-limit": "it wrote more than a step may write",
    }
    hint = hints.get(reason, "")
    if not hint and full:
        hint = "no space is left on the disk of the state directory: run `ocibuild prune`, or free some"
    if not hint and code == NOT_FOUND:
        hint = _not_found(op, outcome, tail)
    if not hint and code == 126:
        hint = _not_executed(outcome, tail)
    if not hint and op.user.partition(":")[0] not in ("", "0", "root") and _refused(tail):
        hint = f"the step runs as user {op.user}: give it the directory (chown), or put USER root before the step"
    if not hint and (code == 137 or signal == 9):
        hint = "something sent SIGKILL: the kernel for want of memory, or the step itself"
    return StepFailed(f'process "{command}" {how}', hint=hint, details=details)


def _not_executed(outcome: RunOutcome, tail: list[str]) -> str:
    """Something is there, but the kernel doesn't run it."""
    said = outcome["message"] or next((line for line in tail if "exec format error" in line.lower()), "")
    if "exec format error: neither" in said:
        return said
    if "exec format error" in said.lower():
        return (
            f"{said.strip()[:200]}, which this host doesn't run: emulation needs binfmt_misc handlers, `sudo apt-get"
            " install qemu-user-static binfmt-support` registers them"
        )
    why = f" ({said.strip()[:200]})" if said else ": is it executable, and for this platform"
    return f"the command is there but can't be executed{why}"


def _refused(tail: list[str]) -> bool:
    return any("permission denied" in line.lower() for line in tail[-5:])


def _not_found(op: Run, outcome: RunOutcome, tail: list[str]) -> str:
    if outcome["message"]:
        return outcome["message"]
    name = named(tail)
    if name:
        return f"{name} is not in the image (or not in PATH)"
    return f"{op.args[0]} or an interpreter that it names is not in the image"
