"""Flags of instructions: ``--name=value``, lists and booleans, with BuildKit's messages."""

from __future__ import annotations

from typing import Literal

from .faults import Fault, did_you_mean

Kind = Literal["bool", "string", "list"]


class Flags:
    """The flags of one instruction by name.  Raises Fault for unknown, doubled or broken ones."""

    __slots__ = ("used", "values")

    def __init__(self, written: list[str], known: dict[str, Kind]) -> None:
        self.values: dict[str, list[str]] = {}
        self.used: list[str] = []
        for flag in written:
            key, equals, value = flag[2:].partition("=")
            kind = known.get(key)
            if kind is None:
                raise Fault(did_you_mean(f"unknown flag: --{key}", key, known), mark=f"--{key}")
            before = self.values.get(key)
            if before is not None and kind != "list":
                raise Fault(f"duplicate flag specified: --{key}", mark=f"--{key}")
            if (not value and equals and kind == "bool") or (not equals and kind != "bool"):
                raise Fault(f"missing a value on flag: --{key}", mark=f"--{key}")
            if kind == "bool":
                if value.lower() not in ("", "true", "false"):
                    raise Fault(f"expecting boolean value for flag --{key}, not: {value}", mark=flag)
                value = "false" if value.lower() == "false" else "true"
            if before is None:
                self.used.append(key)
                self.values[key] = [value]
            else:
                before.append(value)

    def text(self, name: str, default: str = "") -> str:
        found = self.values.get(name)
        return found[0] if found else default

    def flag(self, name: str) -> bool:
        return self.text(name) == "true"

    def maybe(self, name: str) -> bool | None:
        """None where it isn't given."""
        return self.flag(name) if name in self.values else None

    def many(self, name: str) -> tuple[str, ...]:
        return tuple(self.values.get(name, ()))
