"""What goes wrong, in the words of dockerd and of its classic builder, where they have words for it (pure).

Clients match these texts: ``pull access denied for``, ``returned a non-zero code``, ``file does not exist``, ….
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from ...model.reference import Reference
from .protocol import API_VERSION

PULL_CODES = frozenset({"not-found", "unauthorized", "denied"})
NO_DOCKERFILE = "Cannot locate specified Dockerfile"
LOOPBACK = ("localhost", "127.", "[::1]")
"""Registries that are spoken to without TLS unless the configuration says otherwise."""
TAR_FAILED = "Error processing tar file(exit status 1): "
_IMAGE = re.compile(r"[a-z0-9.-]+(:\d+)?/[\w./-]+([:@][\w.:-]+)?\Z")
_WHERE = r"(?:registry |GET https?://)(?P<host>[^/\s]+?)(?:/\S*)?"
_REFUSED = re.compile(_WHERE + r": can't connect: (?:\[Errno \d+\] )?(?P<why>.*)")
_NO_HOST = re.compile(_WHERE + r": no such host.*")
_SCHEME = re.compile(r"GET (([a-z][a-z0-9+.-]*)://\S*): only http and https are fetched", re.IGNORECASE)
_REGISTRY_SAYS = re.compile(r".*?: ([a-z_]+): (.*) \(HTTP \d+\)\Z", re.DOTALL)
_HTTP = re.compile(r"GET (\S+): the server answered HTTP (\d+)")
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"user '([^']*)': not in the image's /etc/passwd.*"),
     r"unable to find user \1: no matching entries in passwd file"),
    (re.compile(r"group '([^']*)': not in the image's /etc/group.*"),
     r"unable to find group \1: no matching entries in group file"),
    (re.compile(r'"/?([^"]*)": not found in the source.*'), r"COPY failed: stat \1: file does not exist"),
)  # fmt: skip
_UNKNOWN = re.compile(r"unknown instruction: (\S+)")
_TAR = re.compile(r"(tar|gzip|bzip2|xz|zstd|lzma): ")
_CUT = re.compile(r"cut off|truncated|missing|ended")
_EARLIER: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"parse error on line"), "parse error line"),
    (re.compile(r"unknown flag: --(\S+)"), r"Unknown flag: \1"),
    (re.compile(r"(unknown instruction: \S+) \(did you mean .*\?\)"), r"\1"),
    (re.compile(r"missing a value on flag: --(\S+)"), r"Missing a value on flag: \1"),
    (re.compile(r"dockerfile parse error line \d+: ((?:ENV|LABEL) must have two arguments|Syntax error - can't find"
                r"|file with no instructions|when using JSON array syntax|invalid escape token)"),
     r"failed to parse Dockerfile: \1"),
    (re.compile(r"dockerfile parse error line \d+: (no build stage in current context)"), r"\1"),
)  # fmt: skip
"""How it was said before API 1.42 (dockerd 23)."""
_DISPATCH: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"invalid stage index (\d+)"), r"invalid from flag value \1: index out of bounds"),
    (re.compile(r"circular dependency detected on stage: (?:stage-)?(\S+)"),
     r"invalid from flag value \1: refers to current build stage"),
    (re.compile(r'failed to parse stage name ".*": (invalid reference format.*)'), r"\1"),
    (re.compile(r"(invalid reference format: repository name) \(\S+\) (must be lowercase)"), r"\1 \2"),
    (re.compile(r'invalid port: ".*": invalid proto: (.*)'), r"Invalid proto: \1"),
    (re.compile(r"invalid (containerPort|signal): "), r"Invalid \1: "),
)  # fmt: skip
"""What is wrong with an instruction's arguments: the classic builder found it when it came to the step."""


def describe(error: Mapping[str, Any], step: str = "") -> str:
    """An error of a build in the classic builder's words.  step: the failing instruction's text."""
    details = error.get("details") or {}
    message, code = str(error.get("message", "")), error.get("code")
    if code == "step-failed" and details.get("command") and "exit_code" in details:
        return f"The command '{details['command']}' returned a non-zero code: {details['exit_code']}"
    for pattern, text in _STEPS:
        if match := pattern.fullmatch(message):
            return match.expand(text)
    name, _, rest = message.partition(": ")
    if _IMAGE.match(name) and (text := pull_refused(str(code), name, rest)) != rest:
        source = re.match(r"COPY\s+(?:--\S+\s+)*--from=(\S+)", step, re.IGNORECASE)
        return f"invalid from flag value {source[1]}: {text}" if source else text
    command = step.split(None, 1)[0].upper() if step else ""
    if command == "ADD" and (text := _download(message, step)):
        return f"ADD failed: {text}"
    if command == "WORKDIR":
        return re.sub(r"cannot copy to non-directory: (.*)", r"Cannot mkdir: \1 is not a directory", message)
    return message


def _download(message: str, step: str) -> str:
    """What kept ADD from getting a URL; "" where it is something else."""
    if match := _HTTP.match(message):
        number = int(match[2])
        phrase = HTTPStatus(number).phrase if number in {status.value for status in HTTPStatus} else ""
        return f"failed to GET {match[1]} with status {number} {phrase}".rstrip()
    url = next((word for word in step.split() if word.startswith(("http://", "https://"))), "")
    lost = _REFUSED.match(message) or _NO_HOST.match(message)
    return unreachable(message, url) if url and lost else ""


def download_failed(message: str, url: str) -> str:
    """What kept a root file system from being fetched, as Go's HTTP client says it."""
    if match := _SCHEME.match(message):
        return f'Get "{match[1]}": unsupported protocol scheme "{match[2]}"'
    return _download(message, f"ADD {url} /") or message


def unreachable(message: str, url: str = "") -> str:
    """A connection that can't be made, as Go's HTTP client says it; other messages as they are."""
    if match := _REFUSED.match(message):
        host = match["host"]
        scheme = url.partition(":")[0] or ("http" if host.startswith(LOOPBACK) else "https")
        port = "" if re.search(r":\d+\Z", host) else ":80" if scheme == "http" else ":443"
        why = "connection refused" if "Connect call failed" in match["why"] else match["why"].lower()
        return f'Get "{url or f"{scheme}://{host}/v2/"}": dial tcp {host}{port}: connect: {why}'
    if match := _NO_HOST.match(message):
        host = match["host"]
        return f'Get "{url or f"https://{host}/v2/"}": dial tcp: lookup {host.partition(":")[0]}: no such host'
    return message


def of_image(error: Mapping[str, Any]) -> bool:
    """Is the error about an image that a Dockerfile names?  Such messages begin with its name."""
    return bool(_IMAGE.match(str(error.get("message", "")).partition(": ")[0]))


def pull_refused(code: str, name: str, why: str) -> str:
    """Why an image can't be pulled, as Docker says it.  code: of the error; name: of the image."""
    try:
        reference = Reference.parse(name).with_default_tag()
    except ValueError:
        return f"{name}: {why}"
    said = _REGISTRY_SAYS.match(why)
    if match := re.search(r"is for (\S+), expected (\S+)", why):
        return (
            f"image with reference {reference.familiar} was found but does not match the specified platform: "
            f"wanted {match[2]}, actual: {match[1]}"
        )
    if code == "not-found" and said and said[1] == "name_unknown":
        return f"repository {reference.familiar_name} not found: name unknown: {said[2]}"
    if code == "not-found":
        why = said[2] if said and said[1] == "manifest_unknown" else why
        return f"manifest for {reference.familiar} not found: manifest unknown: {why}"
    if code in PULL_CODES:
        return (
            f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
            f"'docker login': {why}"
        )
    return unreachable(why)


def registry_says(message: str) -> str:
    """A registry's refusal without what we know of the request: ``manifest unknown: manifest unknown``."""
    said = _REGISTRY_SAYS.match(message)
    return f"{said[1].replace('_', ' ')}: {said[2]}" if said else unreachable(message)


def remote_failed(message: str, url: str) -> str:
    """A remote context that couldn't be had."""
    if message.startswith("git "):
        return f"error fetching: {message}"
    said = _download(message, f"ADD {url} /")
    return f"error downloading remote context {url}: {said}" if said else message


def refused_request(error: Mapping[str, Any], version: str = API_VERSION) -> str:
    """Why a build never began: the request's fault, or the Dockerfile's.  version: before API 1.42 some of it
    was worded otherwise."""
    message = str(error.get("message", ""))
    if match := re.match(r"failed to read dockerfile:? ([^:]+): (no such file|No such file)", message):
        return f"{NO_DOCKERFILE}: {match[1]}"
    if match := re.match(r"dockerfile (.*): not a regular file", message):
        return f"unexpected error reading Dockerfile: read {match[1]}: is a directory"
    if match := re.match(r"dockerfile (.*): Too many levels of symbolic links", message):
        return f"forbidden path outside the build context: {match[1]} ()"
    if match := re.match(r"cpuset-cpus: list '(.*?)': (.*)", message):
        place = re.fullmatch(r"\d+ is not within (\S+)", match[2])
        if place:
            return f"Requested CPUs are not available - requested {match[1]}, available: {place[1]}"
        return f"Invalid value {match[1]} for cpuset cpus: {match[2]}"
    if message == "the Dockerfile cannot be empty":
        return "the Dockerfile (Dockerfile) cannot be empty"
    if _TAR.match(message):
        return tar_failed(message)
    if match := re.match(r"platform '.*?': (.*)", message):
        return match[1]
    return _of_dockerfile(error, message, version) if error.get("code") == "dockerfile" else message


def tar_failed(message: str) -> str:
    """What is wrong with an archive; other messages as they are."""
    if not _TAR.match(message):
        return message
    why = "unexpected EOF" if _CUT.search(message) else "archive/tar: invalid tar header"
    return f"{TAR_FAILED}{why}: {message}"


def _of_dockerfile(error: Mapping[str, Any], message: str, version: str) -> str:
    details = error.get("details") or {}
    if match := re.search(r'target stage "(.*)" could not be found', message):
        return f"failed to reach build target {match[1]} in Dockerfile"
    if "line" in details and not message.startswith("dockerfile parse error"):
        # The place is said once: our own messages carry it in front.
        text = re.sub(r"^[^:\s]+:\d+:\s*", "", message)
        message = f"dockerfile parse error on line {details['line']}: {text}"
    for pattern, text in _DISPATCH:
        message = pattern.sub(text, message, count=1)
    message = _UNKNOWN.sub(lambda match: match[0].replace(match[1], match[1].upper()), message, count=1)
    if tuple(map(int, version.split("."))) < (1, 42):
        for pattern, text in _EARLIER:
            message = pattern.sub(text, message, count=1)
    return message
