"""``ocibuild build``."""

from __future__ import annotations

import os
import sys

from ..args import Args
from ..client import Client
from ..errors import ApiError, ClientError, ConnectionFailed, UsageError
from . import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..progress import Display

HELP = """
Usage:  ocibuild build [OPTIONS] PATH | URL | -

Build an image from a Dockerfile.  PATH is read in place, never uploaded; "-" takes a
Dockerfile or a tar (plain, gzip, bzip2, xz, zstd) from standard input; URL is a git
repository (URL#REF:DIR), a tar, or a Dockerfile.

Options:
  -t, --tag NAME...            Name the image (NAME[:TAG])
  -f, --file PATH              The Dockerfile (default: PATH/Dockerfile; - = standard input)
  -q, --quiet                  Print the image's id only
  -o, --output SPEC...         What to make: type=image|registry|oci|docker|tar|local|cacheonly
                               [,dest=PATH,name=…,push=true,compression=gzip|zstd|uncompressed,…]
  --push                       Push the image to its registry; the same as -o type=registry
  --load                       Keep the image here as well (it always is, but for -o)
  --build-arg KEY[=VALUE]...   Set an ARG; without a value, the variable of that name
  --build-context NAME=WHERE...  Another context (directory, URL, docker-image://, oci-layout://)
  --target STAGE               Build up to this stage
  --platform LIST              Platforms to build for, e.g. linux/amd64,linux/arm64
  --no-cache                   Run every step, whatever the cache holds
  --no-cache-filter STAGE...   Run every step of these stages
  --pull                       Ask the registry for newer base images
  --label KEY=VALUE...         Add a label
  --annotation KEY=VALUE...    Add an annotation to the manifest
  --secret SPEC...             A secret for RUN --mount=type=secret: id=ID[,src=PATH|env=NAME]
  --ssh SPEC...                An SSH agent or keys: default | ID[=SOCKET|KEY[,KEY]]
  --allow ENTITLEMENT...       Grant network.host or security.insecure to the Dockerfile
  --network MODE               Network of RUN: default, none or host
  --add-host HOST:IP...        A line for /etc/hosts of RUN
  --dns ADDRESS...             A name server for RUN
  --cache-from SPEC...         Use cache from: REF | type=registry,ref=REF | type=local,src=DIR
  --cache-to SPEC...           Write cache to: type=registry,ref=REF[,mode=max] | type=local,dest=DIR
                               | type=inline
  --progress MODE              auto, plain, tty, json, rawjson or quiet
  --iidfile FILE               Write the image's id to a file
  --metadata-file FILE         Write the result (digest, id, names) to a file as JSON
  --check                      Check the Dockerfile, build nothing
  --call METHOD[,format=json]  build, check, outline or targets
  --profile                    Print where the time went
  --trace FILE                 Write a timeline (Chrome and Perfetto trace format)
  --reproducible               Clamp timestamps, so that the same input gives the same digest
  --no-new-privileges          Setuid programs in RUN don't elevate
  -m, --memory SIZE            Memory limit of a step
  --memory-swap SIZE           Memory and swap limit of a step
  --shm-size SIZE              Size of /dev/shm
  --cpu-quota USEC             CPU time of a step per period
  --cpu-period USEC            The period of --cpu-quota
  --cpuset-cpus LIST           CPUs that steps may use
  --cpuset-mems LIST           Memory nodes that steps may use
  -c, --cpu-shares N           CPU weight of a step
  --ulimit LIMIT...            nofile=SOFT[:HARD] of a step
  --timeout SECONDS            End the build after so long
  --step-timeout SECONDS       End a step after so long
  --max-parallelism N          Run at most so many steps at the same time
  --detach                     Don't wait; print the build's id
  --rm[=BOOL]                  Accepted for docker's sake: nothing is ever left behind
  --force-rm                   Likewise
  --compress                   Likewise: nothing is uploaded
  --provenance[=SPEC]          Likewise: no attestations are made
  --sbom[=SPEC]                Likewise
  --builder NAME               Likewise: there is one builder
  --disable-content-trust[=BOOL]  Likewise
  -h, --help                   Print this
"""


def build(argv: Sequence[str]) -> int:
    args = arguments(build, argv)
    if len(args.rest) != 1:
        raise UsageError("expected one context: a directory, a URL or -")
    with Client() as client:
        request = _request(args, client)
        if args.detach:
            print(client.call("POST", "/v1/builds", request)["id"])
            return 0
        return _follow(client, request, args)


build.__doc__ = HELP


def _request(args: Args, client: Client) -> dict[str, Any]:
    """The request's JSON; what isn't given is left out."""
    from . import build_options as options

    request: dict[str, Any] = {"context": {"kind": "empty"}}
    _context(args, client, request)
    call = _method(args)
    fields = {
        "tags": args.tag, "target": args.target, "network": options.network(args.network),
        "build_args": options.build_args(args.build_arg), "labels": options.pairs("--label", args.label),
        "annotations": args.annotation, "platforms": options.words(args.platform),
        "no_cache": args.no_cache, "no_cache_filter": options.each(args.no_cache_filter),
        "pull": args.pull, "push": args.push, "add_hosts": args.add_host, "dns": args.dns,
        "allow": options.entitlements(args.allow), "secrets": [options.secret(s) for s in args.secret],
        "ssh": [options.ssh(s) for s in args.ssh],
        "build_contexts": options.contexts(args.build_context),
        "outputs": [options.output(s) for s in args.output],
        "cache_from": [options.cache(s, source=True) for s in args.cache_from],
        "cache_to": [options.cache(s, source=False) for s in args.cache_to],
        "limits": options.limits(args), "epoch": os.environ.get("SOURCE_DATE_EPOCH", ""),
        "reproducible": args.reproducible if "reproducible" in args.given else None, "call": call,
        "no_new_privileges": args.no_new_privileges,
        "timeout": options.integer("--timeout", args.timeout),
        "max_parallelism": options.integer("--max-parallelism", args.max_parallelism),
    }
    if args.load and fields["outputs"]:
        fields["outputs"].append({"type": "image", "dest": "", "attrs": {}})
    request.update({key: value for key, value in fields.items() if value})
    if args.network == "host":
        # What the person at the command line asks for, they grant.
        request["allow"] = sorted({*request.get("allow", []), "network.host"})
    from ..credentials import all_credentials

    if auth := all_credentials():
        request["auth"] = auth
    if args.push or any(o.get("type") == "registry" for o in request.get("outputs", [])):
        _helper_credentials(args.tag, request)
    return request


def _method(args: Args) -> str:
    """--check and --call, whose value may have ``,format=json`` behind it.  Raises UsageError."""
    method: str = args.call.partition(",")[0]
    if method not in ("", "build", "check", "lint", "outline", "targets"):
        raise UsageError(f"invalid method {method!r} for --call: expected check, outline or targets")
    return "check" if args.check or method == "lint" else method


def _helper_credentials(tags: Sequence[str], request: dict[str, Any]) -> None:
    from ..credentials import credentials_for, host_of

    for tag in tags:
        if auth := credentials_for(tag):
            request.setdefault("auth", {})[host_of(tag)] = auth


def _context(args: Args, client: Client, request: dict[str, Any]) -> None:
    """``context``, ``dockerfile`` and ``dockerfile_text``."""
    from ..context import dockerfile_for, read_dockerfile, read_stdin, resolve, rest_of

    where, name = args.rest[0], args.file
    if where == "-":
        if name == "-":
            raise UsageError("can't use standard input for both the context and the Dockerfile")
        head, is_tar = read_stdin(sys.stdin.buffer)
        if is_tar:
            identity = client.upload(rest_of(head, sys.stdin.buffer))
            request["context"] = {"kind": "upload", "id": identity}
            if name:
                request["dockerfile"] = name
            return
        if name:
            raise UsageError("standard input is a Dockerfile already: -f makes no sense with it")
        request["dockerfile_text"] = read_dockerfile(head, sys.stdin.buffer)
        return
    context = request["context"] = resolve(where)
    if name == "-":
        request["dockerfile_text"] = read_dockerfile(read_stdin(sys.stdin.buffer)[0], sys.stdin.buffer)
    elif name:
        request["dockerfile"] = dockerfile_for(name, context)


def _mode(args: Args) -> str:
    if args.quiet:
        return "quiet"
    mode: str = args.progress or os.environ.get("BUILDKIT_PROGRESS") or "auto"
    return mode


def _follow(client: Client, request: dict[str, Any], args: Args) -> int:
    """Show the build to its end; its exit status."""
    if _mode(args) == "quiet" and not (args.trace or args.profile):
        return _follow_quietly(client, request, args)
    from ..progress import display
    from ..progress.state import Build

    shown = display(_mode(args))
    state: Build = getattr(shown, "build", None) or Build()
    separate = getattr(shown, "build", None) is None
    events: list[dict[str, Any]] = []
    keep = bool(args.trace or args.profile)
    try:
        for event in _events(client, request, shown.interval):
            if not event:
                shown.tick()
                continue
            shown.feed(event)
            if separate:
                _note(state, event)
            if keep:
                events.append(event)
    finally:
        shown.close()
    if keep:
        from ..trace import profile, write

        if args.trace:
            write(args.trace, events)
        if args.profile:
            print(profile(events), file=sys.stderr)
    return _finish(args, state, shown)


def _note(state: Any, event: dict[str, Any]) -> None:
    vertex = state.feed(event)
    if vertex is not None and event["type"] == "vertex.log":
        vertex.log(int(event.get("stream", 1)), str(event.get("data", "")))


def _finish(args: Args, state: Any, shown: Display) -> int:
    if state.failure is not None:
        from ..failure import report

        error = ApiError(state.failure.get("error") or {})
        if _mode(args) not in ("json", "rawjson"):
            from ..progress.plain import PlainDisplay

            report(state, sys.stderr, show_log=not isinstance(shown, PlainDisplay))
        return error.exit_code
    if state.result is None:
        raise ConnectionFailed("the daemon went away before the build ended")
    if state.warnings and _mode(args) not in ("json", "rawjson", "quiet"):
        from ..failure import warnings

        print(warnings(state.warnings), file=sys.stderr)
    return _succeed(args, state.id, state.result)


def _follow_quietly(client: Client, request: dict[str, Any], args: Args) -> int:
    """``-q``: nothing is drawn, little is imported."""
    from ..progress.state import Build

    state = Build()
    for event in _events(client, request, None):
        kind = event["type"]
        if kind == "build.done":
            return _succeed(args, state.id, event)
        if not kind.startswith("vertex.status"):
            _note(state, event)
    if state.failure is None:
        raise ConnectionFailed("the daemon went away before the build ended")
    from ..failure import report

    report(state, sys.stderr, show_log=True)
    return ApiError(state.failure.get("error") or {}).exit_code


def _events(client: Client, request: dict[str, Any], tick: float | None) -> Any:
    """The build's events; Ctrl-C cancels the build and goes on until it has ended."""
    events = client.build_events(request, tick=tick)
    build = ""
    try:
        for event in events:
            if event.get("type") == "build.started":
                build = str(event.get("id", ""))
            yield event
        return
    except KeyboardInterrupt:
        if not build:
            raise
    yield from _cancel(build)


def _cancel(build: str) -> Any:
    """Cancel, and show what the build still says; its stream was cut by the interrupt."""
    with Client(start=False) as client:
        try:
            client.cancel(build)
        except ClientError as error:
            raise KeyboardInterrupt from error
        for event in client.events(build, follow=False):
            if event.get("type") in ("build.done", "build.failed"):
                yield event


def _succeed(args: Args, build: str, result: dict[str, Any]) -> int:
    """Print and write what was asked for."""
    image = str(result.get("image", ""))
    code = _answer_call(args, result)
    if args.iidfile:
        _write(args.iidfile, image)
    if args.metadata_file:
        import json

        _write(args.metadata_file, json.dumps(_metadata(build, result), indent=2) + "\n")
    for index, output in enumerate(args.output):
        if _is_streamed(output):
            _fetch(build, index)
    if args.quiet and image:
        sys.stdout.write(image + "\n")
    return code


def _metadata(build: str, result: dict[str, Any]) -> dict[str, Any]:
    """What --metadata-file gets: buildx's keys."""
    descriptor = result.get("descriptor") or {}
    single = "config.digest" in descriptor.get("annotations", {})
    body = {
        "buildx.build.ref": f"ocibuildd/ocibuildd/{build}" if build else "",
        "containerimage.config.digest": result.get("image", "") if single else "",
        "containerimage.descriptor": descriptor,
        "containerimage.digest": result.get("digest", ""),
        "image.name": ",".join(result.get("names", [])),
    }
    return {key: value for key, value in body.items() if value}


def _answer_call(args: Args, result: dict[str, Any]) -> int:
    """What --check, --call outline and --call targets found."""
    method = _method(args)
    if method in ("", "build"):
        return 0
    from ..answers import render

    text, code = render(method, result.get("result"), as_json="format=json" in args.call)
    print(text)
    return code


def _is_streamed(text: str) -> bool:
    from .build_options import output

    return bool(output(text)["dest"] == "-")


def _fetch(build: str, index: int) -> None:
    """An output with dest=-: the daemon has it, we write it to standard output."""
    with Client(start=False) as client:
        for chunk in client.send("GET", f"/v1/builds/{build}/outputs/{index}"):
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise ClientError(f"can't write {path}: {error.strerror}") from None
