"""The database's tables.  ``MIGRATIONS[n]`` takes user_version n to n + 1; none is ever edited once
released.  Times are seconds since the epoch, sizes bytes, digests their text form.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    -- Content by digest: a row has its file, verified when it came in.
    CREATE TABLE blobs (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, created REAL NOT NULL
    ) WITHOUT ROWID;

    -- A layer in its place.  parent: the layer below (0 = none) that the tree was made over;
    -- standalone: the tree holds nothing of its parents and fits anywhere.  Ids are never used again.
    CREATE TABLE layers (
        id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL, standalone INTEGER NOT NULL,
        diff_id TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, tar_size INTEGER NOT NULL,
        media_type TEXT NOT NULL, content TEXT NOT NULL, tree TEXT NOT NULL, created REAL NOT NULL
    );
    CREATE INDEX layers_diff_id ON layers (diff_id);
    CREATE INDEX layers_digest ON layers (digest);
    CREATE INDEX layers_content ON layers (content) WHERE content != '';
    CREATE INDEX layers_tree ON layers (tree) WHERE tree != '';

    -- Unpacked layers.  boot: where it was made; synced: it is known to be on the disk.
    CREATE TABLE trees (
        id TEXT PRIMARY KEY, boot TEXT NOT NULL, synced INTEGER NOT NULL, size INTEGER NOT NULL,
        created REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX trees_unsynced ON trees (id) WHERE synced = 0;

    -- Images by config digest.  kind: image | intermediate.  chain: layer ids "1,2,3".
    -- labels: JSON object.  blobs: JSON list of further blobs to keep (attestations, other manifests).
    CREATE TABLE images (
        id TEXT PRIMARY KEY, manifest TEXT NOT NULL, media_type TEXT NOT NULL, kind TEXT NOT NULL,
        chain TEXT NOT NULL, parent TEXT NOT NULL, created_by TEXT NOT NULL, created REAL NOT NULL,
        size INTEGER NOT NULL, platform TEXT NOT NULL, build TEXT NOT NULL, labels TEXT NOT NULL,
        blobs TEXT NOT NULL, added REAL NOT NULL, last_used REAL NOT NULL
    );
    CREATE INDEX images_manifest ON images (manifest);
    CREATE INDEX images_parent ON images (parent) WHERE parent != '';
    CREATE INDEX images_kind ON images (kind, created);
    CREATE INDEX images_build ON images (build) WHERE build != '';

    -- Indexes (manifest lists) kept as received.  manifests: JSON [[digest, platform, image id or ""], …].
    CREATE TABLE indexes (
        digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, manifests TEXT NOT NULL, created REAL NOT NULL
    );

    -- References.  target: digest of a manifest or an index; image: the image that it means here.
    CREATE TABLE names (
        name TEXT PRIMARY KEY, image TEXT NOT NULL, target TEXT NOT NULL, created REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX names_image ON names (image);
    CREATE INDEX names_target ON names (target);

    -- The build cache.  chain: layer ids "1,2,3"; value: JSON; digests in it keep their blobs.
    CREATE TABLE records (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, selector TEXT NOT NULL, op TEXT NOT NULL,
        identity TEXT NOT NULL, kind TEXT NOT NULL, description TEXT NOT NULL, chain TEXT NOT NULL,
        value TEXT NOT NULL, cost REAL NOT NULL, created REAL NOT NULL, last_used REAL NOT NULL,
        uses INTEGER NOT NULL, build TEXT NOT NULL
    );
    CREATE INDEX records_selector ON records (selector, created);
    CREATE INDEX records_op ON records (op);
    -- By the record's id, so that they are written one after the other.
    CREATE TABLE preimages (id INTEGER PRIMARY KEY, data BLOB NOT NULL);

    -- What garbage collection and prune took, for `explain`.
    CREATE TABLE evictions (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, selector TEXT NOT NULL, at REAL NOT NULL,
        rule TEXT NOT NULL, why TEXT NOT NULL
    );
    CREATE INDEX evictions_key ON evictions (key);
    CREATE INDEX evictions_selector ON evictions (selector);

    -- Builds.  request, result, error: JSON.  status: running | done | failed | cancelled | interrupted.
    CREATE TABLE builds (
        id TEXT PRIMARY KEY, status TEXT NOT NULL, name TEXT NOT NULL, request TEXT NOT NULL,
        started REAL NOT NULL, ended REAL NOT NULL, result TEXT NOT NULL, error TEXT NOT NULL
    );
    CREATE INDEX builds_started ON builds (started);
    CREATE INDEX builds_status ON builds (status);

    CREATE TABLE cache_mounts (
        hash TEXT PRIMARY KEY, id TEXT NOT NULL, sharing TEXT NOT NULL, size INTEGER NOT NULL,
        created REAL NOT NULL, last_used REAL NOT NULL, uses INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX cache_mounts_id ON cache_mounts (id);

    -- What outside things were found to be: kind tag | http | git.  value: JSON.
    CREATE TABLE sources (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, fetched REAL NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE INDEX sources_fetched ON sources (fetched);

    -- Registry pushes under way, to resume them; which repository is known to have which blob.
    CREATE TABLE uploads (
        registry TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, location TEXT NOT NULL,
        offset INTEGER NOT NULL, updated REAL NOT NULL, PRIMARY KEY (registry, repository, digest)
    ) WITHOUT ROWID;
    CREATE TABLE distribution (
        digest TEXT NOT NULL, registry TEXT NOT NULL, repository TEXT NOT NULL, seen REAL NOT NULL,
        PRIMARY KEY (digest, registry, repository)
    ) WITHOUT ROWID;
    CREATE INDEX distribution_seen ON distribution (seen);
    """,
)

KEYS = {
    "blobs": "digest", "layers": "id", "trees": "id", "images": "id", "indexes": "digest", "names": "name",
    "records": "key", "builds": "id", "cache_mounts": "hash",
}
"""The tables that the journal mirrors, and what a row of theirs is deleted by."""
