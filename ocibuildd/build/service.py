"""All builds of the daemon: start, list, follow, cancel, explain, drain.

What the API calls.  A build goes on when the client that started it goes away; whoever wants it to
end cancels it.  For the API:

    builds = Builds(store, nsd, registry, images, state=Path, settings=Settings(…))
    build = await builds.start(request, peer=Peer(local=True, uid=…))   → Build; .id, .info, .events
    builds.get(id)            → BuildInfo (an id, a unique prefix of one, or "" for the newest); NotFound
    builds.list()             → [BuildInfo], newest first
    builds.events(id, since)  → async iterator of bytes: whole lines (JSON), until the build ends
    await builds.wait(id)     → BuildInfo once it has ended
    await builds.cancel(id)   → returns once the build has ended
    await builds.explain(id, step) → [explain.Explanation as dict]
    builds.failed(id)         → FailedStep: {vertex, spec (RunSpec), chain, expires}; NotFound
    upload = builds.upload()  → .id, .write(bytes), .close() / .abort(): a context as tar (LocalContext's
                                counterpart for clients from elsewhere), or a Dockerfile
    builds.output(id, n)      → path of the file that output n ("-") was written to; NotFound
    builds.active             → number of builds that are queued or running (idle timeout)
    await builds.drain(grace) → no new builds; waits; cancels what is left after grace seconds
    await builds.close()      → cancels everything and waits
"""

from __future__ import annotations
