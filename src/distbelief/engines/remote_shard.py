"""A shard on another machine, as the controller's process holds it: a copy of its integers, and a link."""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from distbelief.engines.calls import Calls
from distbelief.errors import InvariantViolated, WorkerDied
from distbelief.links.wire import WireClient, WireLink
from distbelief.ports import Answer, Capture, Command, Restore, SetLiving, Slice, Snapshot
from distbelief.run.state import PARAMETERS
from distbelief.server.block import ShardSpec
from distbelief.server.patience import Patience, retry
from distbelief.server.shard import Shard
from distbelief.server.shard_numbers import ShardNumbers

T = TypeVar("T")
_PATIENCE = Patience(2.0, 4.0)
"""Of the controller's commands: a shard that has come back elsewhere is soon asked there."""
_GONE_S = 60.0
"""For how long a shard is waited for by what cannot go on without it."""


@final
class RemoteShard(ShardNumbers):
    """`numbers` are as old as the last `refresh`, or the last answer that held them."""

    def __init__(self, shard: int, spec: ShardSpec, calls: Calls) -> None:
        super().__init__(spec, torch.zeros(spec.numbers, dtype=torch.int64))
        self._shard = shard
        self._calls = calls
        self._client: WireClient
        self._link: WireLink
        self.vectors: Mapping[str, Tensor] = _Vectors(self)
        self._held: dict[str, Tensor] = {}
        self._limit = _GONE_S

    def connect(self, client: WireClient) -> None:
        """Reach the shard by this client from now on."""
        self._client, self._link = client, client.link(self._shard, self.spec)

    def initialise_(
        self,
        parameters: Tensor,
        state: Mapping[str, Tensor] = {},
        *,
        updates: int = 0,
        examples: int = 0,
        term: int = 0,
    ) -> None:
        """Fill a new shard with copies of vectors. Its host has to await that (`ShardHost.await_restoration`)."""
        filled = Shard(self.spec, torch.zeros(self.spec.nbytes, dtype=torch.uint8))
        filled.initialise_(parameters, state, updates=updates, examples=examples)
        nobody = SetLiving(0, frozenset(), False)
        self.execute(Restore(term, Snapshot(filled.numbers, filled.vectors), (), nobody))
        self._wait(self.refresh())

    async def refresh(self) -> None:
        """Copy the integers."""
        self.numbers.copy_(await self._client.numbers(self._shard))

    async def ask(self, command: Command) -> Answer:
        """Have a command obeyed, however often that takes."""
        answer = await retry(_PATIENCE, lambda: self._link.execute(command), self._link.transferring)
        if isinstance(answer, Snapshot):
            self.numbers.copy_(answer.numbers)
        return answer

    def execute(self, command: Command) -> Answer:
        """Have a command obeyed, and wait for that. Raises `WorkerDied` where the shard's machine is gone for good."""
        return self._wait(self.ask(command))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            # Who has waited in vain once does not wait again.
            limit, self._limit = self._limit, 0.0
            found = self._calls.wait(asyncio.wait_for(call, limit))
            self._limit = _GONE_S
            return found
        except (TimeoutError, ConnectionError) as error:
            raise WorkerDied(
                f"the machine of shard {self._shard} cannot be reached: go on from the last checkpoint with resume=True"
            ) from error

    async def hold(self, names: Sequence[str]) -> None:
        """Copy vectors, for those who ask for them before `release`."""
        self._held = {name: await self._copied(name) for name in names}

    def release(self) -> None:
        """Give up what is held."""
        self._held = {}

    def copy(self, name: str) -> Tensor:
        """A copy of a vector: the one that is held, or else a new one, which is waited for."""
        return self._held[name] if name in self._held else self._wait(self._copied(name))

    async def _copied(self, name: str) -> Tensor:
        into = torch.empty(self.spec.elements, dtype=self.spec.dtype)
        if name == PARAMETERS:
            await retry(_PATIENCE, lambda: self._link.fetch(into), self._link.transferring)
        else:
            await self.ask(Capture({name: [(Slice(0, self.spec.elements), into)]}))
        return into

    def check(self) -> None:
        """Raise `InvariantViolated` unless the bookkeeping is consistent."""
        self._wait(self.refresh())
        if found := self.faults:
            raise InvariantViolated(f"shard {self._shard} at {self.version}: {'; '.join(found)}")


@final
class _Vectors(Mapping[str, Tensor]):
    """A shard's vectors, copied when they are asked for."""

    def __init__(self, shard: RemoteShard) -> None:
        self._shard = shard

    def __getitem__(self, name: str) -> Tensor:
        return self._shard.copy(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard.spec.vectors)

    def __len__(self) -> int:
        return len(self._shard.spec.vectors)
