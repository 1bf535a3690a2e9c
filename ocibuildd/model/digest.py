"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Self

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")


class Digest(str):
    """``sha256:<64 hex>`` or ``sha512:<128 hex>``; nothing else gets through the door.

    Raises ValueError.  A digest is never a path: use :attr:`hex` for file names.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _DIGEST.match(text):
            raise ValueError(f"digest {text[:100]!r}: expected sha256:<64 hex> or sha512:<128 hex>")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 of some bytes."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """From 64 (sha256) or 128 (sha512) hex digits."""
        return cls(("sha512:" if len(text) == 128 else "sha256:") + text)

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve hex digits, as Docker shows ids."""
        return self.hex[:12]


EMPTY_TAR = Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")
"""Diff id of an empty layer: 1,024 zero bytes."""


def chain_ids(diff_ids: tuple[Digest, ...] | list[Digest]) -> list[Digest]:
    """Chain id after each layer (image-spec, config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
