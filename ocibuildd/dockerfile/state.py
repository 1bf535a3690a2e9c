"""A stage while it is being lowered: its image so far, its environment, its place in the graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..model.graph import HistoryItem, Step
from ..model.oci import ContainerConfig, Healthcheck, ImageConfig, Platform
from .faults import Fault
from .gotext import to_utf8
from .instructions import ArgPair, Instruction, Stage
from .options import NamedContext

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_PATH_WINDOWS = "c:\\Windows\\System32;c:\\Windows"
SCRATCH = "scratch"
MAX_WEIGHT = 12_000_000
"""What all configs, histories and environments of one Plan may hold together: characters and entries."""


class Budget:
    """Bounds what a small hostile file can blow up to."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_WEIGHT

    def spend(self, weight: int) -> None:
        self.left -= weight
        if self.left < 0:
            raise Fault("the images of this Dockerfile hold too much: too many variables or labels, too long")


@dataclass(slots=True)
class Image:
    """An image config being built; ``config()`` is a frozen snapshot, made once after each change."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    author: str = ""
    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    env: list[str] = field(default_factory=list)
    env_keys: dict[str, int] = field(default_factory=dict)
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    snapshot: ContainerConfig | None = None

    @classmethod
    def of(cls, image: ImageConfig) -> Image:
        """The start of a stage FROM an image.  ``created``, history and rootfs don't carry over."""
        config = image.config
        new = cls(
            image.architecture, image.os, image.variant, image.os_version, image.os_features, image.author,
            config.user, dict(config.exposed_ports) if config.exposed_ports is not None else None,
            entrypoint=config.entrypoint, cmd=config.cmd,
            volumes=dict(config.volumes) if config.volumes is not None else None,
            working_dir=config.working_dir, labels=dict(config.labels) if config.labels is not None else None,
            stop_signal=config.stop_signal, args_escaped=config.args_escaped, healthcheck=config.healthcheck,
            on_build=config.on_build or (), shell=config.shell,
        )  # fmt: skip
        for entry in config.env or ():
            new.env_keys.setdefault(entry.partition("=")[0], len(new.env))
            new.env.append(entry)
        return new

    @classmethod
    def scratch(cls, platform: Platform) -> Image:
        image = cls(platform.architecture, platform.os, platform.variant, platform.os_version, platform.os_features)
        image.working_dir = "/"
        path = DEFAULT_PATH_WINDOWS if platform.os == "windows" else DEFAULT_PATH
        image.set_env("PATH", path)
        return image

    def clone(self) -> Image:
        """For a stage FROM this one: its ONBUILD triggers don't carry over."""
        return replace(
            self, env=list(self.env), env_keys=dict(self.env_keys), on_build=(), snapshot=None,
            exposed_ports=dict(self.exposed_ports) if self.exposed_ports is not None else None,
            volumes=dict(self.volumes) if self.volumes is not None else None,
            labels=dict(self.labels) if self.labels is not None else None,
        )  # fmt: skip

    def set_env(self, key: str, value: str) -> None:
        index = self.env_keys.get(key)
        if index is None:
            self.env_keys[key] = len(self.env)
            self.env.append(f"{key}={value}")
        else:
            self.env[index] = f"{key}={value}"

    def config(self, budget: Budget) -> ContainerConfig:
        """The config object as it stands."""
        if self.snapshot is None:
            sized = (self.env, self.labels, self.exposed_ports, self.volumes, self.on_build)
            budget.spend(100 + 8 * sum(len(item) for item in sized if item))
            self.snapshot = ContainerConfig(
                user=self.user, env=tuple(self.env) or None,
                exposed_ports=_sorted(self.exposed_ports),
                entrypoint=self.entrypoint or None, cmd=self.cmd or None,
                volumes=_sorted(self.volumes), working_dir=self.working_dir,
                labels=_sorted(self.labels), stop_signal=self.stop_signal,
                args_escaped=self.args_escaped, healthcheck=self.healthcheck, on_build=self.on_build or None,
                shell=self.shell or None,
            )  # fmt: skip
        return self.snapshot

    def image_config(self, budget: Budget) -> ImageConfig:
        return ImageConfig(
            author=self.author, architecture=self.architecture, variant=self.variant, os=self.os,
            os_version=self.os_version, os_features=self.os_features, config=self.config(budget),
        )  # fmt: skip


V = TypeVar("V")


def _sorted(items: dict[str, V] | None) -> dict[str, V] | None:
    """Go writes maps sorted by key; an empty one is left out."""
    return dict(sorted(items.items())) if items else None


@dataclass(slots=True)
class Command:
    """An instruction of a stage; sources: the states that its COPY --from or mounts name."""

    instruction: Instruction
    sources: tuple[State, ...] = ()
    on_build: bool = False


@dataclass(slots=True, eq=False)
class State:
    """A stage of the Dockerfile, or (``unregistered``) an image that a COPY or a mount names.

    index: in the Dockerfile, -1 for unregistered ones.  vertex: whose result is the root file system;
    None: scratch.  pending: the image isn't known yet.  env: what expansion and RUN see."""

    stage: Stage
    index: int
    name: str
    base_name: str
    base: State | None = None
    platform: Platform | None = None
    context: NamedContext | None = None
    context_name: str = ""
    unregistered: bool = False
    dispatched: bool = False
    resolved: bool = False
    reachable: bool = False
    triggers_read: bool = False
    ignore_cache: bool = False
    pending: bool = False
    deps: dict[State, Instruction] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    image: Image = field(default_factory=Image)
    base_image: ImageConfig | None = None
    base_vertex: int | None = None
    vertex: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    env_tuple: tuple[tuple[str, str], ...] | None = None
    cwd: str = "/"
    user: str = ""
    build_args: list[ArgPair] = field(default_factory=list)
    history: list[HistoryItem] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    count: int = 0
    total: int = 0
    running_trigger: bool = False
    workdir_set: bool = False
    used: dict[str, Instruction] = field(default_factory=dict)

    def set_env(self, key: str, value: str) -> None:
        """The later one wins, and stands last."""
        self.env.pop(key, None)
        self.env[key] = value
        self.env_tuple = None

    def image_platform(self) -> Platform:
        """Of the image as it stands."""
        image = self.image
        return Platform(image.architecture, image.os, image.os_version, image.os_features, image.variant)

    def run_env(self, budget: Budget) -> tuple[tuple[str, str], ...]:
        if self.env_tuple is None:
            budget.spend(8 * len(self.env))
            self.env_tuple = tuple(self.env.items())
        return self.env_tuple

    def commit(self, budget: Budget, created_by: str, vertex: int | None = None, *, buildkit: bool = False) -> None:
        """One line of history; ``vertex``: it has a layer."""
        text = to_utf8(created_by) + (" # buildkit" if buildkit else "")
        budget.spend(len(text) + 50)
        self.history.append(HistoryItem(text, vertex))
