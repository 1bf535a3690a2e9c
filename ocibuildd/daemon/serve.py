"""The daemon's life: start, serve, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import __version__
from .. import config as configuration
from ..errors import BuildError, Conflict, InvalidArgument
from . import logs, sockets
from .notify import Notifier, forget, inherited_sockets
from .options import Options

if TYPE_CHECKING:
    import socket

    from aiohttp import web

    from ..api.services import Services
    from .parts import Parts

log = logging.getLogger("ocibuildd.daemon")

DATABASE_ERRORS = 3
"""Failed self-checks after which the watchdog is no longer told that all is well."""
IDLE_TICK = 0.25
IN_USE = 3
"""The exit status when another daemon has the state directory or the socket."""


def run(options: Options) -> int:
    """The whole process; its exit status: 0; 1 = it could not start; 2 = bad configuration; 3 = another
    daemon is there."""
    try:
        config = _configured(options)
    except InvalidArgument as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"ocibuildd: {error.message}{hint}", file=sys.stderr)
        return 2
    if options.check_config:
        print(f"{config.path or 'no configuration file'}: all is well")
        return 0
    if options.doctor:
        return _doctor(config)
    logs.set_up(config.daemon.log_level, plain=_plain(options), environ=os.environ)
    os.umask(0o077)
    daemon = Daemon(config, options)
    os.chdir("/")
    try:
        return _run_loop(daemon.main())
    except BuildError as error:
        hint = f"; hint: {error.hint}" if error.hint else ""
        log.critical("%s%s", error.message, hint)
        return IN_USE if isinstance(error, Conflict) else 1


def _doctor(config: configuration.Config) -> int:
    """What can be found out without a running daemon (one that doesn't start, say); 1 = something is
    missing."""
    import dataclasses
    import json

    from ..sandbox import launch
    from .parts import sandbox_config

    state = sockets.state_directory(config.daemon.state_dir, os.environ)
    found = asyncio.run(launch.trial(state, config=sandbox_config(config)))
    print(json.dumps([dataclasses.asdict(one) for one in found]))
    return 1 if any(one.level == "missing" for one in found) else 0


def _run_loop(main: Coroutine[Any, Any, int]) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _plain(options: Options) -> bool:
    return options.foreground or sys.stderr.isatty()


def _configured(options: Options) -> configuration.Config:
    """The configuration with what the command line says.  Raises InvalidArgument."""
    config = configuration.load(options.config or None)
    given: dict[str, Any] = {
        "state_dir": options.state_dir, "socket": options.socket, "log_level": options.log_level,
    }
    if options.idle_timeout:
        given["idle_timeout"] = float(options.idle_timeout)
    changes = {name: value for name, value in given.items() if value != ""}
    return replace(config, daemon=replace(config.daemon, **changes)) if changes else config


class Daemon:
    """One daemon.  ``main`` is its life."""

    def __init__(self, config: configuration.Config, options: Options):
        self.config = config
        self.options = options
        self.notifier = Notifier(os.environ)
        self.listening = inherited_sockets(os.environ)
        self.state_dir = sockets.state_directory(config.daemon.state_dir, os.environ)
        self.path = sockets.socket_path(config.daemon.socket, os.environ, os.geteuid())
        self.activated = bool(self.listening)
        self.ends_when_idle = options.auto or self.activated or bool(options.idle_timeout)
        self._own_socket: socket.socket | None = None
        self._stop = asyncio.Event()
        self._signals = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        forget(os.environ)

    async def main(self) -> int:
        """Serve until a signal or idleness ends it."""
        from ..sandbox import launch
        from ..store import Store

        begun = time.monotonic()
        gc.disable()  # thousands of functions and classes are made now, and stay
        store = Store.open(self.state_dir, ballast=_ballast(self.config))
        nsd = None
        try:
            # nsd starts on another processor while this one imports the rest.
            from .parts import sandbox_config

            starting = asyncio.create_task(
                launch.start(self.state_dir, config=sandbox_config(self.config))
            )
            await asyncio.sleep(0)
            import_everything()
            nsd = await starting
            await self._serve(store, nsd, begun)
        finally:
            if nsd is not None:
                await nsd.close()
            store.close()
        log.info("ended")
        return 0

    async def _serve(self, store: Any, nsd: Any, begun: float) -> None:
        from ..api.app import make_runner
        from .parts import Parts

        parts = Parts(self.config, store, nsd)
        served = self._services(parts)
        runner = make_runner(self._app(parts, served))
        await runner.setup()
        try:
            await self._listen(runner)
            self._handle_signals(parts, served)
            gc.enable()
            gc.collect()
            gc.freeze()
            log.info("ocibuildd %s ready in %.0f ms", __version__, (time.monotonic() - begun) * 1000)
            self.notifier.ready("taking builds")
            for work in (
                parts.maintenance.run(), self._idle(parts, served), self._watchdog(parts)
            ):
                task = asyncio.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._ended)
            await self._stop.wait()
            await self._drain(parts, served)
        finally:
            await self._end(parts, runner)

    def _services(self, parts: Parts) -> Services:
        from ..api.services import Services
        from .parts import shown

        return Services(
            builds=parts.builds, images=parts.images, store=parts.store,
            maintenance=parts.maintenance, registry=parts.registry, nsd=parts.nsd,
            owner=os.geteuid(), state_dir=self.state_dir, settings=shown(self.config),
            unpacker=parts.puller.unpacker, doctor=parts.nsd.doctor,
            entitlements=frozenset(self.config.entitlements.allow),
        )

    def _app(self, parts: Parts, served: Services) -> web.Application:
        from ..api.app import make_app
        from ..api.builds import peer
        from ..api.docker import DockerApi

        app = make_app(served)
        DockerApi(
            builds=parts.builds, images=parts.images, registry=parts.registry,
            maintenance=parts.maintenance, fetcher=parts.fetcher, root=self.state_dir, peer=peer,
        ).register(app)
        return app

    async def _listen(self, runner: web.AppRunner) -> None:
        """Open the socket only now: it answers as soon as it is there."""
        from aiohttp import web

        if not self.listening:
            self._own_socket = sockets.listen(self.path)
            self.listening = [self._own_socket]
        for sock in self.listening:
            sock.setblocking(False)
            await web.SockSite(runner, sock, backlog=sockets.BACKLOG).start()

    # --- signals ------------------------------------------------------------------------------

    def _handle_signals(self, parts: Parts, served: Services) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload, parts, served)

    def _terminate(self, number: int) -> None:
        """The first drains; a second one lets nothing finish."""
        self._signals += 1
        log.info("%s: %s", signal.Signals(number).name,
                 "ending once running builds have" if self._signals == 1 else "ending now")
        self._stop.set()

    def _reload(self, parts: Parts, served: Services) -> None:
        """SIGHUP: a file that can't be read leaves everything as it was."""
        from .parts import shown

        self.notifier.reloading()
        try:
            config = _configured(self.options)
            parts.reconfigure(config)
        except BuildError as error:
            log.error("the configuration is kept as it was: %s", error.message)
        else:
            if later := configuration.at_next_start(self.config, config):
                log.warning("not before the next start: %s", ", ".join(later))
            self.config = config
            logs.set_level(config.daemon.log_level)
            served.settings = shown(config)
            served.entitlements = frozenset(config.entitlements.allow)
            log.info("configuration read again")
        self.notifier.ready("taking builds")

    # --- what goes on beside ------------------------------------------------------------------

    async def _idle(self, parts: Parts, served: Services) -> None:
        """End after the idle time, where nobody keeps us running."""
        while True:
            await asyncio.sleep(IDLE_TICK)
            limit = self.config.daemon.idle_timeout
            if not self.ends_when_idle or not limit:
                continue
            if served.active or parts.builds.active:
                served.last = time.monotonic()
            elif time.monotonic() - served.last >= limit:
                log.info("idle for %.0f s: ending", limit)
                self._stop.set()
                return

    async def _watchdog(self, parts: Parts) -> None:
        """Signs of life, as long as database and nsd give some."""
        if not self.notifier.watchdog:
            return
        failed = 0
        while True:
            await asyncio.sleep(self.notifier.watchdog / 2)
            try:
                parts.store.db.one("SELECT 1")
                await parts.nsd.ensure()
                failed = 0
            except Exception:
                log.exception("self-check")
                failed += 1
            if failed < DATABASE_ERRORS:
                self.notifier.alive()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """None of these should end by an error: it is a bug, and the daemon goes on without."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task ended", exc_info=error)

    # --- the end ------------------------------------------------------------------------------

    async def _drain(self, parts: Parts, served: Services) -> None:
        """No new builds; running ones may finish within the grace period."""
        served.draining = True
        grace = self.config.daemon.grace
        self.notifier.stopping(grace)
        if self._signals > 1:
            return
        draining = asyncio.ensure_future(parts.builds.drain(grace))
        while not draining.done() and self._signals < 2:
            await asyncio.wait({draining}, timeout=0.1)
        if not draining.done():
            draining.cancel()
        await asyncio.wait({draining})

    async def _end(self, parts: Parts, runner: web.AppRunner) -> None:
        if self._own_socket is not None:
            # New clients find no socket, and start or wait for the next daemon.
            sockets.remove(self.path, self._own_socket)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(BuildError, OSError):
            await parts.close()
        await runner.cleanup()


def _ballast(config: configuration.Config) -> int:
    return config.gc.ballast


def import_everything() -> None:
    """All modules that serving needs: while nsd starts, and before the first request waits for them."""
    import importlib

    with _without_certificates():
        importlib.import_module("aiohttp.web")
    for name in ("api.app", "api.docker", "build.service", "image.service", "daemon.parts"):
        importlib.import_module(f"ocibuildd.{name}")


@contextlib.contextmanager
def _without_certificates() -> Iterator[None]:
    """aiohttp loads the system's certificates twice while it is imported (50 ms, 3 MiB), for contexts
    that nobody uses here: the registry client and the downloader make their own when they need one."""
    import ssl

    def load_nothing(*_: object) -> None:
        return

    names = ("load_default_certs", "set_default_verify_paths")
    kept = {name: getattr(ssl.SSLContext, name) for name in names}
    for name in names:
        setattr(ssl.SSLContext, name, load_nothing)
    try:
        yield
    finally:
        for name in names:
            setattr(ssl.SSLContext, name, kept[name])
