"""Images as people use them: list, inspect, history, tag, remove, pull, push, save, load, import, prune.

What the native API and Docker's both call (``service.Images``):

    images = Images(store, nsd, registry, puller)          puller: executor.image.ImagePuller

    images.find(name)                 → store.images.Image: by name, id or unique prefix; NotFound
    images.list(all=…, filters=…)     → [Summary], newest first
    images.inspect(name)              → Details
    images.history(name)              → [HistoryLine], newest first
    images.tag(source, target)        → the name, normalised
    images.remove(name, force=…, prune=…)  → [Removed("untagged" | "deleted", what)]; NotFound, Conflict
    await images.prune(filters)       → Pruned

    await images.pull(ref, platform=…, auth=…, emit=…)          → Pulled
    await images.pull_all(ref, …)                               → [Pulled]: every tag
    await images.push(name, auth=…, emit=…, platform=…)         → Pushed
    await images.push_all(repository, …)                        → [Pushed]: every local tag
    images.save(names, form="docker" | "oci", platform=…)       → async iterator of bytes: a tar
    await images.load(source, emit=…)                           → [Loaded]; source: async iterator of bytes
    await images.import_rootfs(source, name, changes=…, message=…, platform=…)  → Digest (image id)

``emit("status", id=…, current=…, total=…, unit="bytes", text=…)`` tells of layers: ``id`` is the first
twelve digits of the blob's digest, ``text`` is one of PROGRESS_TEXTS.  Everything that came from elsewhere is
kept as the bytes that came.
"""
