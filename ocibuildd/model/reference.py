"""Image references: ``[domain/]path[:tag][@digest]`` as Docker reads and shortens them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from .digest import Digest

DEFAULT_DOMAIN = "docker.io"
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?\Z"
)
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_ID = re.compile(r"[0-9a-f]{64}\Z")
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: ``domain`` and ``path`` always stand (``docker.io/library/busybox``)."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Normalise what a person wrote.  Raises ValueError with Docker's words."""
        if _ID.match(text):
            raise ValueError(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        name, at, digest_text = text.partition("@")
        try:
            digest = Digest(digest_text) if at else None
        except ValueError as error:
            raise ValueError(f"invalid reference format: {error}") from None
        tag: str | None = None
        head, colon, tail = name.rpartition(":")
        if colon and "/" not in tail:
            name, tag = head, tail
            if not _TAG.match(tag):
                raise ValueError(f"invalid reference format: tag {tag!r}")
        domain, path = cls._split(name)
        if path != path.lower():
            raise ValueError("invalid reference format: repository name must be lowercase")
        if not _DOMAIN.match(domain) or not _PATH.match(path):
            raise ValueError(f"invalid reference format: {text!r}")
        if len(domain) + 1 + len(path) > MAX_NAME:
            raise ValueError(f"repository name must not be more than {MAX_NAME} characters")
        return cls(domain, path, tag, digest)

    @staticmethod
    def _split(name: str) -> tuple[str, str]:
        first, slash, rest = name.partition("/")
        is_domain = slash and (
            "." in first or ":" in first or first == "localhost" or first != first.lower()
        )
        domain, path = (first, rest) if is_domain else (DEFAULT_DOMAIN, name)
        if domain == "index.docker.io":
            domain = DEFAULT_DOMAIN
        if domain == DEFAULT_DOMAIN and "/" not in path:
            path = f"library/{path}"
        return domain, path

    @property
    def repository(self) -> str:
        """``docker.io/library/busybox``: no tag, no digest."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as Docker shows it: ``busybox``, ``user/app``, ``host:5000/app``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as Docker shows it."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.familiar_name}{tag}{digest}"

    def with_default_tag(self) -> Reference:
        """``:latest`` where neither tag nor digest stands."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"
