"""Layers on their way, as dockerd tells of them (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...model.units import human_size

BAR = 50
"""Characters of a progress bar, and how often a layer's progress is told at most."""
PULL_WORDS = {
    "waiting": "Pulling fs layer", "downloading": "Downloading", "extracting": "Extracting", "done": "Pull complete",
    "exists": "Already exists",
}  # fmt: skip
PUSH_WORDS = {
    "waiting": "Preparing", "pushing": "Pushing", "pushed": "Pushed", "exists": "Layer already exists",
}  # fmt: skip

MOVING = frozenset({"downloading", "extracting", "pushing", "importing"})
"""They are told with how far they are."""


def progress_bar(current: int, total: int) -> str:
    """Docker's bar: ``[=====>     ]  1.2MB/3MB``."""
    if total <= 0:
        return f"{human_size(current):>8}"
    filled = min(current * BAR // total, BAR)
    head = ">" if filled < BAR else ""
    bar = ("=" * filled + head)[:BAR]
    return f"[{bar:<{BAR}}]  {human_size(current)}/{human_size(total)}"


def layer_message(words: dict[str, str], **status: Any) -> dict[str, Any]:
    """One of ``emit``'s calls as a message about a layer."""
    text, name = str(status.get("text", "")), str(status.get("id", ""))
    current, total = int(status.get("current") or 0), int(status.get("total") or 0)
    if text.startswith("mounted"):
        origin = text.partition(" from ")[2]
        return {"status": f"Mounted from {origin}" if origin else "Mounted", "progressDetail": {}, "id": name}
    word = words.get(text, text.capitalize())
    if text in MOVING and total:
        detail = {"current": current, "total": total}
        return {"status": word, "progressDetail": detail, "progress": progress_bar(current, total), "id": name}
    return {"status": word, "progressDetail": {}, "id": name}


class Transfers:
    """The progress of several layers: messages where something new is to be told."""

    def __init__(self, words: dict[str, str]):
        self._words = words
        self._last: dict[str, tuple[str, int]] = {}

    def message(self, status: Mapping[str, Any]) -> dict[str, Any] | None:
        """``status``: id, text, current and total of a "status"."""
        name, text = str(status.get("id", "")), str(status.get("text", ""))
        total = int(status.get("total") or 0)
        step = int(status.get("current") or 0) * BAR // total if total else 0
        if self._last.get(name) == (text, step):
            return None
        self._last[name] = (text, step)
        return layer_message(self._words, **status)
