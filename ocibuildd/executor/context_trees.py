"""Contexts, downloads and checkouts as file systems that steps mount: a tree for each selection, for one build."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidArgument
from ..model.graph import Copy, Mount
from ..ports import Nsd
from ..store import Store
from .copy import copy_spec, source_dir
from .source import Directory
from .unpack import Unpacker

_WHOLE = copy_spec(Copy((), "/"), None)


class ContextTrees:
    """Made when a step mounts them, gone with the build."""

    def __init__(self, store: Store, nsd: Nsd, unpacker: Unpacker):
        self._store = store
        self._nsd = nsd
        self._unpacker = unpacker
        self._made: dict[tuple[int, str, str], str] = {}

    def close(self) -> None:
        """No step runs any more."""
        for tree in self._made.values():
            self._unpacker.discard(tree)
        self._made.clear()

    def __contains__(self, tree: str) -> bool:
        return tree in self._made.values()

    async def get(self, directory: Directory, mount: Mount, digest: str, stamp: str) -> str:
        """The tree that has a mount's source at its path.  digest: of the selection's content, as the step's key has
        it; stamp: of its files ("" = they can't change).  Raises InvalidArgument where they did change."""
        key = id(directory), digest, mount.source
        known = self._made.get(key)
        if known is not None:
            return known
        tree = self._store.trees.allocate()
        try:
            source = source_dir((mount.source,), directory=directory, fd=0)
            args: dict[str, Any] = {"tree": tree, "source": source, "copy": _WHOLE}
            done = await self._nsd.call("replicate", args, [directory.fd])
            if stamp and done["stamp"] != stamp:
                raise InvalidArgument(
                    "build context: files changed between being digested and being mounted",
                    hint="something writes to the build context during the build; build again",
                )
        except BaseException:
            self._unpacker.discard(tree)
            raise
        # A step beside this one may have been quicker.
        first = self._made.setdefault(key, tree)
        if first != tree:
            self._unpacker.discard(tree)
        return first
