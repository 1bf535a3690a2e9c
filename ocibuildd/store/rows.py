"""Values from our own rows."""

from __future__ import annotations

from ..model.digest import Digest


def trusted(text: str) -> Digest:
    """A digest that was checked on its way into the database: not checked again on each way out."""
    return str.__new__(Digest, text)
