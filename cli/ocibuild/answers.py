"""What --check and --call found, in words."""

from __future__ import annotations

import binascii
import json

from .failure import source_lines
from .text import escape, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def render(method: str, found: Any, *, as_json: bool = False) -> tuple[str, int]:
    """The text, and the exit status: 1 where a check has findings, as docker has it."""
    code = 1 if method == "check" and ((found or {}).get("warnings") or (found or {}).get("buildError")) else 0
    if as_json:
        return json.dumps(found, indent=2), code
    if method == "check":
        return _check(found or {}), code
    if method == "targets":
        return _targets(found or {}), 0
    return _outline(found or {}), 0


def _check(found: dict[str, Any]) -> str:
    warnings, error = found.get("warnings") or [], found.get("buildError")
    if not warnings and not error:
        return "Check complete, no warnings found."
    count = len(warnings)
    lines = [f"Check complete, {count} warning{' has' if count == 1 else 's have'} been found!"]
    source = (found.get("sources") or [{}])[0]
    text = binascii.a2b_base64(source.get("data") or "").decode("utf-8", "replace").splitlines()
    for item in sorted(warnings, key=_first_line):
        url = f" - {item['url']}" if item.get("url") else ""
        lines += ["", f"WARNING: {escape(item.get('ruleName', ''))}{escape(url)}"]
        if item.get("description"):
            lines.append(escape(item["description"]))
        lines.append(escape(item.get("detail", "")))
        lines += _place(item, source, text)
    if error:
        lines += ["", *_place(error, source, text), f"ERROR: {escape(str(error.get('message', '')))}"]
    return "\n".join(lines)


def _place(item: dict[str, Any], source: dict[str, Any], text: list[str]) -> list[str]:
    """The lines of the Dockerfile that are meant, between those around them."""
    ranges = (item.get("location") or {}).get("ranges") or []
    if not ranges:
        return []
    first, last = int(ranges[0]["start"]["line"]), int(ranges[-1]["end"]["line"])
    shown = [[n, text[n - 1]] for n in range(first - 2, last + 3) if 0 < n <= len(text)]
    details = {"file": source.get("filename"), "line": first, "end_line": last}
    return [source_lines({**details, "source": shown})]


def _first_line(item: dict[str, Any]) -> int:
    ranges = (item.get("location") or {}).get("ranges") or [{"start": {"line": 0}}]
    return int(ranges[0]["start"]["line"])


def _targets(found: dict[str, Any]) -> str:
    rows = []
    for item in found.get("targets") or []:
        name = [item["name"]] if item.get("name") else []
        default = ["(default)"] if item.get("default") else []
        rows.append([" ".join(name + default), item.get("description") or ""])
    return table(["TARGET", "DESCRIPTION"], rows)


def _outline(found: dict[str, Any]) -> str:
    lines = []
    name, description = str(found.get("name") or "(default)"), str(found.get("description") or "")
    if description:
        lines += [f"TARGET:      {escape(name)}", f"DESCRIPTION: {escape(description)}"]
    elif found.get("name"):
        lines += [f"TARGET: {escape(name)}"]
    for title, key, columns in (
        ("BUILD ARG", "args", ("name", "value", "description")),
        ("SECRET", "secrets", ("name", "required")), ("SSH", "ssh", ("name", "required")),
        ("CACHE MOUNT", "cache", ("id",)),
    ):
        rows = [
            ["true" if item.get(column) is True else str(item.get(column) or "") for column in columns]
            for item in found.get(key) or []
        ]
        if rows:
            header = [title, *(column.upper() for column in columns[1:])]
            lines += ["", table(header, rows)]
    return "\n".join(lines).strip() or json.dumps(found, indent=2)
