"""``ocibuild``: find the command, run it, turn what goes wrong into words and an exit status."""

from __future__ import annotations

import sys

from . import __version__
from .errors import ApiError, ClientError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# name → (module under commands, function, one line of help); "" hides an alias from the list.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "build": ("build", "build", "Build an image from a Dockerfile"),
    "pull": ("transfer", "pull", "Download an image from a registry"),
    "push": ("transfer", "push", "Upload an image to a registry"),
    "images": ("images", "images", "List images"),
    "run": ("run", "run", "Run a command in a throw-away sandbox of an image"),
    "login": ("login", "login", "Log in to a registry"),
    "logout": ("login", "logout", "Log out from a registry"),
    "history": ("images", "history", "Show the steps that an image was made by"),
    "inspect": ("images", "inspect", "Show everything about images"),
    "tag": ("images", "tag", "Give an image another name"),
    "rmi": ("images", "rmi", "Remove images"),
    "diff": ("images", "diff", "Show which files differ between two images"),
    "save": ("transfer", "save", "Write images to a tar"),
    "load": ("transfer", "load", "Read images from a tar"),
    "import": ("transfer", "import_", "Make an image from a root file system's tar"),
    "ps": ("builds", "list_", "List builds, newest first"),
    "logs": ("builds", "logs", "Show a build's progress again, or follow it"),
    "cancel": ("builds", "cancel", "End a running build"),
    "explain": ("builds", "explain", "Say why each step of a build ran"),
    "debug": ("run", "debug", "Enter the sandbox of a build's failed step"),
    "verify": ("builds", "verify", "Build again and name what differs"),
    "prune": ("space", "prune", "Remove dangling images and unused cache"),
    "gc": ("space", "gc", "Collect garbage by the configured policies now"),
    "doctor": ("system", "doctor", "Check what this host offers, and how to mend what it lacks"),
    "info": ("system", "info", "Show the daemon's settings and state"),
    "version": ("system", "version", "Show the versions of client and daemon"),
    "start": ("system", "start", "Start the daemon, if it isn't running"),
    "stop": ("system", "stop", "Ask the daemon to end"),
    "rm": ("images", "rmi", ""),
}
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "image": ("Manage images", {
        "ls": COMMANDS["images"], "build": COMMANDS["build"], "history": COMMANDS["history"],
        "inspect": COMMANDS["inspect"], "tag": COMMANDS["tag"], "rm": COMMANDS["rmi"],
        "prune": ("space", "image_prune", "Remove unused images"), "pull": COMMANDS["pull"],
        "push": COMMANDS["push"], "save": COMMANDS["save"], "load": COMMANDS["load"],
        "import": COMMANDS["import"], "diff": COMMANDS["diff"],
    }),
    "builder": ("Manage builds", {
        "build": COMMANDS["build"], "prune": ("space", "builder_prune", "Remove build cache"),
    }),
    "builds": ("Look at builds", {
        "ls": ("builds", "history", "List builds, newest first"),
        "list": ("builds", "history", ""), "logs": COMMANDS["logs"],
        "inspect": ("builds", "inspect", "Show everything about a build"),
        "cancel": COMMANDS["cancel"], "explain": COMMANDS["explain"], "debug": COMMANDS["debug"],
    }),
    "cache": ("Manage cache mounts", {
        "mounts": ("cache", "mounts", "List cache mounts"), "ls": ("cache", "mounts", ""),
        "inspect": ("cache", "inspect", "Show a cache mount"),
        "clear": ("cache", "clear", "Empty a cache mount"),
        "export": ("cache", "export", "Write a cache mount to a tar"),
        "import": ("cache", "import_", "Fill a cache mount from a tar"),
        "prune": ("space", "builder_prune", "Remove build cache"),
    }),
    "registry": ("Look at registries, and tidy them", {
        "tags": ("registry", "tags", "List the tags of a repository"),
        "delete": ("registry", "delete", "Delete a tag or manifest in its registry"),
    }),
    "system": ("Manage the daemon", {
        "df": ("space", "df", "Show disk usage"),
        "prune": ("space", "system_prune", "Remove what is unused"),
        "check": ("system", "check", "Verify every blob and row of the store"),
        "info": COMMANDS["info"], "events": ("builds", "list_", ""),
    }),
    "context": ("Work with other clients", {
        "docker": ("system", "context_docker", "Print the line that points docker at this daemon"),
    }),
}
EPILOGUE = "Run 'ocibuild COMMAND --help' for more about a command."


def usage() -> str:
    """The overview that ``ocibuild --help`` prints."""
    lines = [
        "Usage:  ocibuild [--host HOST] COMMAND", "",
        "Build and manage OCI images without root", "", "Commands:",
    ]
    lines += [f"  {name:<10} {line}" for name, (_, _, line) in COMMANDS.items() if line]
    lines += ["", "Groups:"]
    lines += [f"  {name:<10} {line}" for name, (line, _) in GROUPS.items()]
    lines += [
        "", "Options:",
        "  -H, --host HOST   The daemon's socket: unix:///path (default: $OCIBUILD_HOST)",
        "  -v, --version     Print the client's version and end",
        "  -h, --help        Print this and end", "", EPILOGUE,
    ]
    return "\n".join(lines)


def group_usage(name: str) -> str:
    """What ``ocibuild image --help`` prints."""
    line, members = GROUPS[name]
    rows = [f"  {member:<10} {about}" for member, (_, _, about) in members.items() if about]
    return "\n".join(
        [f"Usage:  ocibuild {name} COMMAND", "", line, "", "Commands:", *rows, "", EPILOGUE]
    )


def _global_options(words: list[str]) -> list[str] | int:
    """Options before the command; the rest, or an exit status when that was all."""
    while words and words[0].startswith("-"):
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-v", "--version"):
            print(f"ocibuild {__version__}")
            return 0
        if name in ("-h", "--help"):
            print(usage())
            return 0
        if name in ("-H", "--host"):
            if not equals and not words:
                raise UsageError(f"flag needs an argument: {name}")
            import os

            os.environ["OCIBUILD_HOST"] = value if equals else words.pop(0)
            continue
        from .args import suggestion

        raise UsageError(f"unknown flag: {name}", suggestion(name, ["--host", "--version", "--help"]))
    return words


def _find(words: list[str]) -> tuple[str, tuple[str, str, str], list[str]] | int:
    """The command that the words name, and its arguments; an exit status after help."""
    name, rest = words[0], words[1:]
    if name == "help":
        words = rest or ["--help"]
        if words == ["--help"]:
            print(usage())
            return 0
        return _find([*words, "--help"])
    if name in GROUPS and name not in COMMANDS:
        members = GROUPS[name][1]
        if not rest or rest[0] in ("-h", "--help"):
            print(group_usage(name))
            return 0
        if rest[0] not in members:
            from .args import suggestion

            hint = suggestion(rest[0], list(members)) or f"see 'ocibuild {name} --help'"
            raise UsageError(f"unknown command: ocibuild {name} {rest[0]}", hint)
        return f"{name} {rest[0]}", members[rest[0]], rest[1:]
    if name not in COMMANDS:
        from .args import suggestion

        known = [*(key for key in COMMANDS if COMMANDS[key][2]), *GROUPS]
        hint = suggestion(name, known) or "see 'ocibuild --help'"
        raise UsageError(f"unknown command: {name}", hint)
    return name, COMMANDS[name], rest


def run(words: list[str]) -> int:
    """Run a command line (without the program's name); its exit status."""
    left = _global_options(words)
    if isinstance(left, int):
        return left
    if not left:
        print(usage())
        return 0
    found = _find(left)
    if isinstance(found, int):
        return found
    name, (module, function, _), rest = found
    command: Callable[[list[str]], int | None] = getattr(
        __import__(f"ocibuild.commands.{module}", fromlist=[function]), function
    )
    if _wants_help(name, rest):
        print(_help(name, command.__doc__ or ""))
        return 0
    try:
        return command(rest) or 0
    except UsageError as error:
        error.hint = error.hint or f"see 'ocibuild {name} --help'"
        raise UsageError(f"{name}: {error.message}", error.hint) from None


def _wants_help(name: str, rest: list[str]) -> bool:
    """``--help`` among the options; for ``run`` only before the image (the rest is the command's)."""
    if name not in ("run", "debug"):
        words = rest[: rest.index("--")] if "--" in rest else rest
        return "--help" in words or words == ["-h"]
    return rest[:1] in (["--help"], ["-h"])


def _help(name: str, doc: str) -> str:
    """A command's docstring as its help: the summary, usage and options stand in it."""
    lines = doc.strip("\n").split("\n")
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    text = "\n".join(line.removeprefix(indent) for line in lines).rstrip()
    return text.replace("COMMAND_NAME", name)


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; every failure ends here as a message on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--version"], ["-v"]):
        sys.stdout.write(f"ocibuild {__version__}\n")
        return 0
    try:
        status = run(words)
        sys.stdout.flush()
        return status
    except ClientError as error:
        _report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence()
        return 141


def _report(error: ClientError) -> None:
    from .text import escape_lines

    sys.stdout.flush()
    prefix = "ocibuild: " if isinstance(error, UsageError) else "ERROR: "
    print(prefix + escape_lines(error.message), file=sys.stderr)
    if isinstance(error, ApiError) and error.details.get("source"):
        from .failure import source_lines

        print(source_lines(error.details), file=sys.stderr)
    if error.hint:
        print(f"hint: {escape_lines(error.hint)}", file=sys.stderr)


def _silence() -> None:
    """Nobody reads our output any more: keep the interpreter from saying so at its end."""
    import os

    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
