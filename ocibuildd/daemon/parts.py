"""The daemon's objects, made from a configuration; and what a new configuration changes in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..store import Store
from ..store.maintenance import Maintenance
from ..store.policy import Policy, default_policies

DEFAULT_CEILING = "80%"
DEFAULT_FLOOR = 0.02
"""Share of the disk that is always left free."""


def space(value: int | str, total: int) -> int:
    """Bytes, or a share of the disk (``"10%"``), in bytes."""
    if isinstance(value, str):
        return total * int(value.rstrip("%")) // 100
    return value


def policies(config: Config, total: int) -> tuple[Policy, ...]:
    """The configured collection policies, or BuildKit's defaults for a disk of ``total`` bytes."""
    if not config.gc.enabled:
        return ()
    if not config.gc.policy:
        return default_policies(total)
    return tuple(
        Policy(
            f"policy-{number}", all=one.all, keep_duration=one.keep_duration,
            reserved_space=space(one.reserved_space, total),
            max_used_space=space(one.max_used_space, total),
            min_free_space=space(one.min_free_space, total), filters=one.filters,
        )
        for number, one in enumerate(config.gc.policy)
    )


def build_settings(config: Config) -> Any:
    """``build.info.Settings``: what the configuration says about builds."""
    from ..build.info import UPLOAD_LIMIT, Settings
    from ..executor.output import STEP_LOG_LIMIT

    limits = {
        "memory": config.limits.memory, "memory_swap": config.limits.memory_swap,
        "pids": config.limits.pids, "cpu_quota": config.limits.cpu_quota,
        "cpu_period": config.limits.cpu_period, "io_weight": config.limits.io_weight,
        "nofile": config.limits.nofile,
        "upper_bytes": config.limits.upper_bytes, "timeout": int(config.limits.step_timeout),
    }
    dns = {
        "servers": list(config.network.dns), "search": list(config.network.dns_search),
        "options": list(config.network.dns_options),
    }
    return Settings(
        max_builds=config.daemon.max_builds, max_parallelism=config.daemon.max_parallelism,
        entitlements=frozenset(config.entitlements.allow),
        limits={name: value for name, value in limits.items() if value},
        build_timeout=config.limits.build_timeout,
        log_bytes=config.limits.log_bytes or STEP_LOG_LIMIT,
        context_bytes=config.limits.context_bytes or UPLOAD_LIMIT,
        no_new_privileges=config.sandbox.no_new_privileges, reproducible=config.build.reproducible,
        compression=config.build.compression, compression_level=config.build.compression_level,
        failed_ttl=config.build.failed_ttl, history_ttl=config.build.history_ttl,
        history_max=config.build.history_max,
        dns={key: value for key, value in dns.items() if value},
    )


def registry_config(config: Config) -> Any:
    """``registry.config.RegistryConfig``."""
    from ..registry.config import RegistryConfig, RegistrySettings

    return RegistryConfig(
        registries={
            host: RegistrySettings(**dataclasses.asdict(one))
            for host, one in config.registry.items()
        }
    )


def shown(config: Config) -> dict[str, Any]:
    """What ``info`` shows of the configuration."""
    return {
        "config": str(config.path or ""), "grace": config.daemon.grace,
        "max_builds": config.daemon.max_builds, "max_parallelism": config.daemon.max_parallelism,
        "registries": sorted(config.registry), "gc": config.gc.enabled,
        "reproducible": config.build.reproducible, "compression": config.build.compression,
    }


def configure_space(store: Store, config: Config) -> None:
    """The hard ceiling and the floor."""
    total = store.space.disk().total
    store.space.configure(
        ceiling=space(config.gc.ceiling or DEFAULT_CEILING, total), floor=int(total * DEFAULT_FLOOR)
    )


def sandbox_config(config: Config) -> dict[str, Any]:
    """What nsd is told."""
    wanted = {
        "ids": config.sandbox.ids, "overlay": config.sandbox.overlay,
        "network_mode": config.sandbox.network,
    }
    return {name: value for name, value in wanted.items() if value}


class Parts:
    """All objects.  ``close`` ends them in the reverse order."""

    def __init__(self, config: Config, store: Store, nsd: Any):
        from ..build.service import Builds
        from ..executor.image import ImagePuller
        from ..image.service import Images
        from ..registry.client import RegistryClient
        from ..registry.credentials import Credentials
        from ..registry.fetch import Fetcher

        self.config = config
        self.store = store
        self.nsd = nsd
        self.registry = RegistryClient(registry_config(config), Credentials(), store.uploads)
        self.puller = ImagePuller(store, nsd, self.registry)
        self.maintenance = Maintenance(
            store, self._remove, policies(config, store.space.disk().total),
            interval=config.gc.interval if config.gc.enabled else 0.0,
            keep_builds=config.build.history_max, build_age=config.build.history_ttl,
            measure=self._measure,
        )
        self.images = Images(store, nsd, self.registry, self.puller, self.maintenance)
        self.fetcher = Fetcher()
        self.builds = Builds(
            store, nsd, self.registry, self.puller, self.fetcher, settings=build_settings(config),
        )
        configure_space(store, config)

    async def _remove(self, paths: Sequence[Path]) -> object:
        return await self.nsd.call("remove", {"paths": [os.fspath(path) for path in paths]})

    async def _measure(self, paths: Sequence[Path]) -> Sequence[int]:
        found = await self.nsd.call("measure", {"paths": [os.fspath(path) for path in paths]})
        sizes: list[int] = found["sizes"]
        return sizes

    def reconfigure(self, config: Config) -> None:
        """Take over all settings of a new configuration but where state and socket are."""
        self.config = config
        self.registry.reconfigure(registry_config(config))
        self.builds.reconfigure(build_settings(config))
        self.maintenance.policies = policies(config, self.store.space.disk().total)
        self.maintenance.interval = config.gc.interval if config.gc.enabled else 0.0
        configure_space(self.store, config)

    async def close(self) -> None:
        """After the builds have ended."""
        await self.builds.close()
        await self.maintenance.close()
        await self.fetcher.close()
        await self.registry.close()
