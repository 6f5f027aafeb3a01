"""The Ray engine: shards and replicas on the machines of a cluster, where Ray places, starts and watches them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from distbelief.checks import check_whole
from distbelief.errors import UsageError

if TYPE_CHECKING:
    from distbelief.engines.ray.ray_session import RaySession

_MOST_REPLICAS = 4
# As in `links.codec`, which imports torch: that takes seconds.
_CODECS = ("float32", "bf16", "int8")


@final
@dataclass(frozen=True, kw_only=True)
class Ray:
    """Train on a Ray cluster.

    `address`: of the cluster, as "10.0.0.1:6379"; None: that in RAY_ADDRESS or, without one, Ray is started on this
    machine alone. `device`: where replicas compute: "cpu", "cuda", or "auto", which is "cuda" where there are `gpus`.
    `cpus`, `gpus`: what Ray sets aside for each replica; its threads are as many as its `cpus`.
    `spares`: replicas that are kept ready, with the resources of one, to take the place of one that dies.
    `encrypted`: whether what goes from machine to machine is encrypted, which costs bandwidth; False only where all who
    can reach these machines are trusted. `codec`: how gradients travel from machine to machine: "float32" as they are;
    "bf16" in half the bytes; "int8" in a quarter, where what is lost in rounding is added to the next gradient.
    """

    address: str | None = None
    device: str = "auto"
    cpus: int = 1
    gpus: int = 0
    spares: int = 0
    encrypted: bool = True
    codec: str = "float32"

    def __post_init__(self) -> None:
        if self.address is not None and not re.fullmatch(r"auto|local|[^\s:/]+:\d+", str(self.address)):
            raise UsageError(f'address must be that of a Ray cluster, such as "10.0.0.1:6379", not {self.address!r}')
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f'device must be "auto", "cpu" or "cuda", not {self.device!r}: Ray chooses which GPU')
        check_whole("cpus", self.cpus)
        check_whole("gpus", self.gpus, least=0)
        check_whole("spares", self.spares, least=0)
        if self.codec not in _CODECS:
            raise UsageError(f"codec must be one of {', '.join(_CODECS)}, not {self.codec!r}")
        if self.device == "cuda" and not self.gpus:
            raise UsageError('device="cuda" needs gpus=1 or more, so that Ray sets some aside for each replica')

    @property
    def devices(self) -> tuple[str, ...]:
        """Where this process computes: replicas compute elsewhere."""
        return ("cpu",)

    @property
    def replica_device(self) -> str:
        """Where a replica computes, as it sees its machine."""
        return "cuda:0" if self.gpus and self.device != "cpu" else "cpu"

    @property
    def replicas(self) -> int:
        """How many replicas "auto" stands for: as many as find room, 4 at most of those without a GPU."""
        from distbelief.engines.ray.cluster import room

        fits = max(1, room(self.resources) - self.spares)
        return fits if self.gpus else min(_MOST_REPLICAS, fits)

    @property
    def resources(self) -> dict[str, float]:
        """What a replica takes of its machine."""
        return {"CPU": float(self.cpus)} | ({"GPU": float(self.gpus)} if self.gpus else {})

    @property
    def overlap(self) -> int:
        """What crosses the network does so beside the computation."""
        return 1

    @property
    def in_this_process(self) -> bool:
        """Replicas are processes of their own."""
        return False

    def open(self) -> RaySession:
        """Join the cluster, or start one. Raises `UsageError` where that cannot be."""
        from distbelief.engines.ray.ray_session import RaySession

        return RaySession(self)
