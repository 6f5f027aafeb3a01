"""What the integers of a shard's block say, to the shard itself and to a process that has a copy of them."""

from abc import ABC
from typing import Any

from torch import Tensor

from distbelief.ports import Version
from distbelief.server import block
from distbelief.server.block import ShardSpec
from distbelief.server.register import Register
from distbelief.server.schedules import rate


class ShardNumbers(ABC):  # noqa: B024
    """Read access to the integers of a block. `numbers`: int64, `spec.numbers` of them; the caller owns the memory."""

    def __init__(self, spec: ShardSpec, numbers: Tensor) -> None:
        self.spec = spec
        self.numbers = numbers
        """Int64. In a shard's own memory, others may be writing them."""
        # A memoryview answers with plain ints, ten times as fast as a tensor's or an array's elements.
        self._header: Any = numbers.numpy().data
        self._register = Register(spec, self._header)
        self._reached = block.VERSION if spec.admission.lead is None else block.SLOWEST

    @property
    def version(self) -> Version:
        """The shard's term, and the updates applied so far; a push that was refused or is held does not count."""
        return self._register.version

    @property
    def reached(self) -> Version:
        """The progress that fetches wait for: the version or, under a pacing policy, the slowest living clock."""
        return Version(self._header[block.TERM], self._header[self._reached])

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update, for the parameters that are in no group."""
        return rate(self.spec.rule.lr, self._header[block.EXAMPLES])

    @property
    def pushes(self) -> int:
        """Pushes that moved, or will move, the parameters."""
        return int(self._header[block.PUSHES])

    @property
    def living(self) -> int:
        """Number of replicas that hold leases, by the newest `SetLiving`."""
        return int(self._header[block.LIVING])

    @property
    def fenced(self) -> list[int]:
        """For each replica, the newest incarnation whose pushes are refused; 0 if there is none."""
        return [self._header[block.slot_of(replica) + block.FENCED] for replica in range(self.spec.replicas)]

    @property
    def staleness(self) -> Tensor:
        """Histogram of the staleness of used pushes, int64. The last bin also counts every larger staleness."""
        return self.numbers[block.HEADER : block.HEADER + block.BINS].clone()

    @property
    def stalest(self) -> int:
        """The largest staleness of a used push."""
        return int(self._header[block.STALEST])

    @property
    def faults(self) -> list[str]:
        """What is inconsistent in the bookkeeping, in sentences."""
        return list(self._register.faults())
