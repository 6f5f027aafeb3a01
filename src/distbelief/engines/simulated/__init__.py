"""The simulated engine: the product's own replicas, shards and ledger in virtual time, in one process, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from distbelief.checks import check_seed
from distbelief.engines.simulated.faults import Fault, Plan
from distbelief.engines.simulated.laws import Law, Lognormal, law_of
from distbelief.engines.simulated.network import Network
from distbelief.errors import UsageError

if TYPE_CHECKING:
    from distbelief.engines.simulated.simulation import SimulatedSession


@final
@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Train in virtual time: gradients are computed, waiting is not waited for.

    `seed`: of times, messages and races; None: that of the run. Equal seeds give equal runs. `compute`: how long a
    batch takes a replica, seconds or a law. `network`: the links between machines. `faults`: what happens to them.
    Each replica, each shard and the controller are machines of their own.

    Raises `UsageError` for laws and faults that cannot be; those for machines that the run does not have are refused
    when it begins.
    """

    seed: int | None = None
    compute: float | Law = field(default_factory=lambda: Lognormal(0.1, 0.2))
    network: Network = field(default_factory=Network)
    faults: Sequence[Fault] = ()

    overlap: ClassVar = 0
    """A step waits for its fetch and its push."""
    in_this_process: ClassVar = True
    """All of it is in one process."""
    devices: ClassVar = ("cpu",)
    """Where replicas compute."""
    replicas: ClassVar = 4
    """How many replicas "auto" stands for."""

    def __post_init__(self) -> None:
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise UsageError(f"seed must be a whole number or None, not {self.seed!r}")
        check_seed(self.seed or 0)
        law_of("compute", self.compute)
        if not isinstance(self.network, Network):
            raise UsageError(f"network must be a Network such as Network(latency=0.01), not {self.network!r}")
        if not isinstance(self.faults, list | tuple):
            raise UsageError(f'faults must be a list such as [Death("replica 0", at=10.0)], not {self.faults!r}')
        object.__setattr__(self, "faults", tuple(self.faults))
        Plan(self.faults)

    def open(self) -> AbstractContextManager[SimulatedSession]:
        """Begin a session."""
        from distbelief.engines.simulated.simulation import SimulatedSession

        return nullcontext(SimulatedSession(self))
