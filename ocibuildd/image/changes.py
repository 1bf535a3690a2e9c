"""``--change``: Dockerfile instructions that only change an image's config (import)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..dockerfile import LowerOptions
from ..errors import InvalidArgument
from ..model.oci import ContainerConfig, Platform

ALLOWED = frozenset(
    {
        "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER",
        "VOLUME", "WORKDIR",
    }
)  # fmt: skip
MAX_CHANGES = 1_000


def apply_changes(changes: Sequence[str], platform: Platform) -> ContainerConfig:
    """The config that the changes make of an empty one.  Raises InvalidArgument, DockerfileError."""
    if not changes:
        return ContainerConfig()
    from ..dockerfile import lower, parse

    if len(changes) > MAX_CHANGES:
        raise InvalidArgument(f"{len(changes)} changes, at most {MAX_CHANGES} are taken")
    words = set()
    for change in changes:
        word = change.strip().partition(" ")[0].upper()
        if word not in ALLOWED:
            raise InvalidArgument(f"{word or 'an empty line'} is not a valid change command")
        words.add(word)
    text = "FROM scratch\n" + "\n".join(change.strip() for change in changes) + "\n"
    plan = lower(parse(text.encode()), LowerOptions(platform=platform), {})
    config = plan.stages[plan.target].image.config
    # FROM scratch gives a build its PATH and working directory; an import says what it was told only.
    if not any(change.strip().partition(" ")[2].lstrip().startswith("PATH") for change in changes):
        env = tuple(pair for pair in config.env or () if not pair.startswith("PATH="))
        config = msgspec.structs.replace(config, env=env or None)
    config = msgspec.structs.replace(config, args_escaped=False)
    if "WORKDIR" not in words:
        config = msgspec.structs.replace(config, working_dir="")
    return config
