"""One function a command; its docstring is its help and declares its options."""

from __future__ import annotations

from ..args import Args, parse
from ..client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def arguments(
    command: Callable[..., object], argv: Sequence[str], lowest: int = 0, most: int | None = None,
    *, interspersed: bool = True,
) -> Args:
    """Parse by the options that the command's docstring declares."""
    return parse(command.__doc__ or "", argv, lowest=lowest, most=most, interspersed=interspersed)


def client() -> Client:
    return Client()
