"""Annotations at every level, as people ask for them.  Pure.

``--annotation [LEVEL[,LEVEL…]:]KEY=VALUE`` and the output attributes ``annotation[-LEVEL].KEY=VALUE``;
LEVEL is manifest (the default), manifest-descriptor, index or index-descriptor, each with an optional
``[PLATFORM]``.  Source: BuildKit's docs/annotations.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import InvalidArgument

LEVELS = ("manifest", "manifest-descriptor", "index", "index-descriptor")
_ATTRIBUTE = re.compile(
    r"annotation(?:-(manifest-descriptor|manifest|index-descriptor|index))?(?:\[([a-z0-9/._-]{1,100})\])?"
    r"\.(.+)\Z",
    re.DOTALL,
)
_LEVEL = re.compile(
    r"(manifest-descriptor|manifest|index-descriptor|index)(?:\[([a-z0-9/._-]{1,100})\])?\Z"
)
MAX_KEY = 1_024
MAX_VALUE = 64 << 10


@dataclass(frozen=True, slots=True)
class Annotations:
    """Annotations by (level, platform text, "" = all)."""

    values: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)

    def at(self, level: str, platform: str = "") -> dict[str, str]:
        """Those of a level for a platform; ones that name the platform win."""
        found = dict(self.values.get((level, ""), {}))
        if platform:
            found.update(self.values.get((level, platform), {}))
        return found

    @property
    def any(self) -> bool:
        return bool(self.values)


def parse_annotations(options: Iterable[str], attributes: Mapping[str, str]) -> Annotations:
    """From --annotation options and an output's attributes.  Raises InvalidArgument."""
    values: dict[tuple[str, str], dict[str, str]] = {}

    def put(level: str, platform: str, key: str, value: str) -> None:
        if not key or len(key) > MAX_KEY or len(value) > MAX_VALUE or "\0" in key + value:
            raise InvalidArgument(f"annotation {key[:100]!r}: empty, too long, or with a NUL")
        if platform and level in ("index", "index-descriptor"):
            raise InvalidArgument(f"annotation {key}: an {level} has no platform")
        values.setdefault((level, platform), {})[key] = value

    for option in options:
        levels, key, value = _split(option)
        for level, platform in levels:
            put(level, platform, key, value)
    for name, value in attributes.items():
        if (match := _ATTRIBUTE.match(name)) is not None:
            put(match[1] or "manifest", match[2] or "", match[3], value)
    return Annotations(values)


def _split(option: str) -> tuple[list[tuple[str, str]], str, str]:
    name, equals, value = option.partition("=")
    if not equals:
        raise InvalidArgument(f"annotation {option[:100]!r}: expected [LEVEL:]KEY=VALUE")
    head, colon, key = name.partition(":")
    matches = [_LEVEL.match(part) for part in head.split(",")]
    if not colon or not all(matches):
        return [("manifest", "")], name, value
    return [(match[1], match[2] or "") for match in matches if match], key, value
