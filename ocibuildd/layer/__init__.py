"""File systems as layers: trees in overlayfs form to tars and back, and files straight into tars.

Everything here is plain synchronous code over descriptors: it runs in short-lived children of nsd (or in a
thread of main, for a local context), imports the standard library, isal and zstandard only, and never
opens a path that it wasn't given a root for.  Sizes are bytes; names are ``bytes`` inside this package.

A *root* is a descriptor of a directory that shows a merged root file system (a read-only overlay mount of a
chain, or the only tree of a chain), None for scratch.  Owners on disk are "container id + ``shift``"; owners in
tars, and all that is reported, are container ids.  ``squash`` (one id only): owners are neither set nor read
(0:0).  All ``output`` and ``limits`` values are those of ``ports``.  All functions leave the descriptors that they
are given open, and their offsets undefined.

    apply.apply_layer(source_fd, tree_fd, *, root=None, expect_diff_id="", shift=0, squash=False,
                      limits=None) -> Applied
    diff.diff_tree(upper_fd, root, output_fd, output, *, shift=0, squash=False, skip=()) -> Packed
    compare.diff_roots(root_fd, root, output_fd, output, *, shift=0, squash=False, skip=()) -> Packed    (mode "copy")
    copy.pack(sources: Sequence[Source], spec: CopySpec, root, output_fd, output, *, shift=0, squash=False,
              reuse=None) -> Packed
    checksum.checksum(source: Source, spec: CopySpec, *, shift=0, squash=False, fingerprints=None) -> Checksum
    select.Source(fd=…|None, inline=((name, data, mode), …), paths=(), ignore=(), remote=False, owned=False)
    missing.not_found(missing, ignored, near, link) -> NotFound
    archive.archive(root_fd, output_fd, *, shift=0, squash=False, clamp=None) -> {"entries", "bytes"}
    archive.export(root_fd, dir_fd) -> {"entries", "bytes"}                         (-o type=local)
    compare.compare(root_a, root_b) -> {"changes": [[kind, path, size], …], "more"}
    unpack.unpack(source_fd, dir_fd, *, limits=None) -> {"files", "bytes", "skipped"}
    remove.remove(paths) -> {"files", "bytes"}
    lookup.lookup(root, stat, read, *, shift=0) -> {"stat": {…}, "read": {…}}
    fingerprints.Fingerprints.load(path) / .save()       (a file of the caller's, any damage = empty)
"""
