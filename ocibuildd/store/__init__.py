"""The store: one directory that holds all that the daemon keeps, and the database that knows it.

One process has it open (``lock``); all of it is used from the loop's thread, since a query costs a few
microseconds and a hop to a thread fifty times that.  The exceptions are named where they stand:
functions marked *thread-safe* touch files only and are for ``runtime.in_thread``.

    <state>/                     0700, all of it the user's (but trees and cache mounts)
      lock                       flock; pid of the daemon
      store.db                   SQLite (WAL, synchronous=FULL)
      journal.jsonl              what the rows say, once more, to build the database again from
      clean                      there after an orderly end; absent = look for what a crash left
      ballast                    bytes to give up when the disk is full
      blobs/<algorithm>/<hex>    content, 0600
      ingest/                    blobs on their way in; emptied at start
      quarantine/                blobs that were not what their digest says
      trees/<tree id>/           unpacked layers (``fs`` inside); owned by subordinate ids
      cache/<hash>/              cache mounts; owned by subordinate ids
      builds/<build id>/         event logs
      trash/                     on its way out

Rules: file first and row second on the way in, row first and file second on the way out, so that a row
always has its file.  Putting what is there and removing what is gone are no errors.  Every write is one
commit (0.24 ms) unless inside ``with store.transaction():``, which must not be awaited in.

A *layer* is a row that says where a layer's bytes are: as a blob (``digest``; whether the blob is here
is for ``blobs.has``), as a ``tree``, or both.  A *chain* is layer ids, lowest first.
"""

from .store import Store

__all__ = ["Store"]
