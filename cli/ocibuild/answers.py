"""What --check and --call found, in words."""

from __future__ import annotations

import json

from .text import escape, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def render(method: str, found: Any, *, as_json: bool = False) -> tuple[str, int]:
    """The text, and the exit status: 1 where a check has findings, as docker has it."""
    code = 1 if method == "check" and found else 0
    if as_json:
        return json.dumps(found, indent=2), code
    if method == "check":
        return _check(found or []), code
    if method == "targets":
        return _targets(found or {}), 0
    return _outline(found or {}), 0


def _check(found: list[dict[str, Any]]) -> str:
    if not found:
        return "Check complete, no warnings found."
    count = len(found)
    lines = [f"Check complete, {count} warning{'' if count == 1 else 's'} found!"]
    for item in found:
        url = f" - {item['url']}" if item.get("url") else ""
        lines += ["", f"WARNING: {escape(item.get('rule', ''))}{escape(url)}"]
        lines.append(escape(item.get("description") or ""))
        where = item.get("location") or {}
        if where.get("start"):
            lines.append(f"Dockerfile:{where['start']}: {escape(item.get('message', ''))}")
        else:
            lines.append(escape(item.get("message", "")))
    return "\n".join(line for line in lines if line is not None)


def _targets(found: dict[str, Any]) -> str:
    rows = [
        [item.get("name") or "", "yes" if item.get("default") else "", item.get("description") or ""]
        for item in found.get("Targets") or []
    ]
    return table(["TARGET", "DEFAULT", "DESCRIPTION"], rows)


def _outline(found: dict[str, Any]) -> str:
    lines = []
    if found.get("name"):
        lines += [f"TARGET: {escape(str(found['name']))}"]
    if found.get("description"):
        lines += [f"DESCRIPTION: {escape(str(found['description']))}"]
    for title, key, columns in (
        ("BUILD ARG", "args", ("name", "value", "description")),
        ("SECRET", "secrets", ("name", "required")), ("SSH", "ssh", ("name", "required")),
        ("CACHE MOUNT", "cache", ("id",)),
    ):
        rows = [
            [str(item.get(column, "") or "") for column in columns] for item in found.get(key) or []
        ]
        if rows:
            header = [title, *(column.upper() for column in columns[1:])]
            lines += ["", table(header, rows)]
    return "\n".join(lines).strip() or json.dumps(found, indent=2)
