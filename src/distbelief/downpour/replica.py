"""A Downpour replica: the client's side of section 4.1, line by line.

for each portion of the data:
    for each batch:
        if step % n_fetch == 0: fetch the parameters
        compute the gradient, accrue it, and take a local step with it
        if step % n_push == 0: push what is accrued
    push what is left, and account for the portion
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from torch import Tensor

from distbelief.allocation import Progress
from distbelief.downpour.method import Downpour
from distbelief.errors import Diverged
from distbelief.ports import Gradient, GradientSource, Lease, Outcome, Reply, Verdict, Version, Work, WorkSource
from distbelief.server.client import Client, FrozenGradient, HandOver, all_finite, read_scalars, verdict_of
from distbelief.server.groups import split
from distbelief.server.layout import Layout
from distbelief.server.rules import Rule
from distbelief.server.schedules import rate

_REFUSALS = 20
"""Number of consecutive non-finite gradients after which a replica raises `Diverged`."""

_NORM_S = 2.0
"""Seconds between readings of a push's norm where no `clip_norm` requires it: one costs as much as the check."""


@final
@dataclass(eq=False)
class DownpourReplica:
    """Trains one copy of the model, lease by lease, until there is no more work. Its fields are `ReplicaParts`."""

    method: Downpour
    _: KW_ONLY
    client: Client
    source: GradientSource
    work: WorkSource
    parameters: Tensor
    overlap: int = 0
    stopping: Callable[[], bool] = lambda: False
    watch: Callable[[Progress], None] = lambda progress: None

    def __post_init__(self) -> None:
        self.progress = Progress()
        self._staging = torch.empty_like(self.parameters) if self.overlap else self.parameters
        self._fetching: asyncio.Task[tuple[Version, ...]] | None = None
        self._pushing: asyncio.Task[None] | None = None
        self._acknowledgement: Awaitable[None] | None = None
        self._versions: tuple[Version, ...] = ()
        self._hand_over = HandOver(self.method.clip_norm)
        rule = self.method.local_rule
        self._local = None if rule is None else LocalStep(rule, self.client.layout, self.parameters)
        self._refusals = 0
        self._norm_at = -math.inf
        self._largest_batch = 0
        self._account = _Account(Lease(0, 0, 0, 0))

    async def run(self) -> None:
        """Work until there are no more leases."""
        try:
            while (lease := await self.work.lease()) is not None:
                await self._portion(lease)
            await self._acknowledged()
        finally:
            for task in (self._fetching, self._pushing, self._acknowledgement):
                if isinstance(task, asyncio.Future):
                    task.cancel()

    async def _portion(self, lease: Lease) -> None:
        self._account = _Account(lease)
        for batch in range(lease.start, lease.stop):
            if self.stopping():
                break
            await self._fetch()
            # The fetch may have waited until the run was stopped. A gradient computed now would belong to no round.
            if self.stopping():
                break
            if not self._account.open:
                self.source.keep()
            gradient = await self.source.gradient(lease.epoch, batch)
            self._hand_over.accrue(gradient, self._versions)
            self._account.accrued(batch, gradient.examples)
            due = self.progress.steps % self.method.n_push == 0
            loss = self._read_and_step(gradient, due)
            if due:
                await self._push()
            self.progress.steps += 1
            if math.isfinite(loss):
                self.progress.losses += 1
                self.progress.loss += loss
            self._report_progress()
        if self._account.open:
            await self._push()
        await self._await_push()
        self._report_progress()
        await self._acknowledged()
        # Waited for when there is something to push: the next gradient is computed meanwhile.
        self._acknowledgement = self.work.done(lease, self._account.outcomes)

    async def _acknowledged(self) -> None:
        """Wait until the controller has heard of the last lease.

        Shards know of a replica's last push alone: if it died with a later one, what was done of that lease would be
        leased again.
        """
        if self._acknowledgement is not None:
            acknowledgement, self._acknowledgement = self._acknowledgement, None
            await acknowledgement

    async def _fetch(self) -> None:
        if self._fetching is not None:
            self._versions, self._fetching = await self._fetching, None
            self.parameters.copy_(self._staging)
        if self.progress.steps % self.method.n_fetch == 0:
            if self.overlap and self._versions:
                self._fetching = asyncio.create_task(self.client.fetch(self._staging))
            else:
                self._versions = await self.client.fetch(self.parameters)

    def _read_and_step(self, gradient: Gradient, due: bool) -> float:
        """Read a batch's loss, together with the other scalars of the step, and take the local step."""
        if self._local is None and not due:
            return read_scalars((gradient.loss,))[0]
        now = asyncio.get_running_loop().time()
        if norm := due and now >= self._norm_at:
            self._norm_at = now + _NORM_S
        (loss,) = self._hand_over.read(gradient.loss, norm=norm)
        # A non-finite gradient will be refused. In the local step, it would stay in the rule's state for good. If the
        # accrued gradient is not finite, an earlier batch may be the cause, so check this batch by itself.
        if self._local is not None and (self._hand_over.finite or all_finite(gradient.tensors)):
            # Estimate the examples that the run had used at the last fetch: updates · batches per push · batch size.
            self._largest_batch = max(self._largest_batch, gradient.examples)
            self._local(gradient, self._versions[0].updates * self.method.n_push * self._largest_batch)
        return loss

    async def _push(self) -> None:
        await self._await_push()
        frozen, account = self._hand_over.take(), self._account
        if frozen.norm is not None:
            self.progress.norms += 1
            self.progress.norm += frozen.norm
        work = account.close()
        if not frozen.finite:
            self._refuse(work)
            return
        await self._acknowledged()
        if self.overlap:
            self._pushing = asyncio.create_task(self._deliver(frozen, work))
        else:
            await self._deliver(frozen, work)

    async def _await_push(self) -> None:
        """Wait for the push under way."""
        if self._pushing is not None:
            pushing, self._pushing = self._pushing, None
            await pushing

    async def _deliver(self, frozen: FrozenGradient, work: Work) -> None:
        self._record_replies(work, await self.client.push(frozen, work))

    def _record_replies(self, work: Work, replies: list[Reply]) -> None:
        self._refusals = 0
        verdict = verdict_of(replies)
        self._account.record(work, verdict)
        progress, used = self.progress, verdict.used
        progress.pushes += used
        progress.examples += work.examples if used else 0
        progress.rejected += not used
        progress.staleness = max([reply.staleness for reply in replies])

    def _refuse(self, work: Work) -> None:
        self.source.undo()
        self._account.record(work, Verdict.NOT_FINITE)
        self.progress.rejected += 1
        self._refusals += 1
        if self._refusals == _REFUSALS:
            self._report_progress()
            raise Diverged(
                f"{_REFUSALS} gradients in a row were not finite and were refused; the server's parameters are finite. "
                "Lower lr, set clip_norm, or look for a division by zero or a logarithm of zero in the loss"
            )

    def _report_progress(self) -> None:
        self.progress.fetched_bytes, self.progress.pushed_bytes = self.client.fetched_bytes, self.client.pushed_bytes
        self.watch(self.progress)


@final
class LocalStep:
    """A replica's local step between fetches, w ← w − α·g. The state of its rule is private to the replica."""

    def __init__(self, rule: Rule, layout: Layout, parameters: Tensor) -> None:
        # For each group, its rule and the indices of its parameters.
        self._groups = split(rule, [entry.name for entry in layout.entries])
        self._parameters = [view.view(-1) for view in layout.views(parameters)]
        self._state = [
            [view.view(-1) for view in layout.views(torch.full_like(parameters, value))]
            for value in rule.state.values()
        ]
        self._step = torch.zeros((), dtype=torch.float32, device=parameters.device)

    def __call__(self, gradient: Gradient, examples: int) -> None:
        """Apply a batch's finite gradient to the local parameters. `examples`: number used by the run."""
        flat = [None if tensor is None else tensor.reshape(-1) for tensor in gradient.tensors]
        if all(tensor is None for tensor in flat):
            return
        self._step += 1
        for rule, places in self._groups:
            present = [i for i in places if flat[i] is not None]
            tensors = [tensor for i in present if (tensor := flat[i]) is not None]
            if not tensors:
                continue
            rule.update_(
                [self._parameters[i] for i in present],
                tensors if gradient.weight is None else torch._foreach_div(tensors, float(gradient.weight) or 1.0),
                [[vector[i] for i in present] for vector in self._state],
                self._step,
                rate(rule.lr, examples),
            )


@final
class _Account:
    """Tracks the batches of one lease: those accrued for the next push, and the outcomes of earlier pushes."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.outcomes: list[Outcome] = []
        self._start = self._stop = lease.start
        self._examples = self._refused = self._dropped = 0

    @property
    def open(self) -> bool:
        """Whether there are batches that have been accrued and are in no push yet."""
        return self._stop > self._start

    def accrued(self, batch: int, examples: int) -> None:
        self._stop = batch + 1
        self._examples += examples

    def close(self) -> Work:
        """Return the `Work` of a push with the batches accrued so far, and start the next one."""
        work = Work(self.lease.number, self._start, self._stop, self._examples, self._refused, self._dropped)
        self._start, self._examples = self._stop, 0
        return work

    def record(self, work: Work, verdict: Verdict) -> None:
        if verdict is Verdict.NOT_FINITE:
            self._refused += work.examples
        elif not verdict.used:
            self._dropped += work.examples
        last = self.outcomes[-1] if self.outcomes else None
        if last is not None and last.verdict is verdict:
            self.outcomes[-1] = Outcome(last.start, work.stop, verdict)
        else:
            self.outcomes.append(Outcome(work.start, work.stop, verdict))
