"""Staging between a device and the host; the conformance suite shows that it is a link."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from distbelief.links.staged import StagedLink
from distbelief.ports import ORIGIN, Answer, Command, Fence, Push, PushRecord, Reply, Slice, Verdict, Version, Work
from tests.shards import at

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")),
]
ANSWER = PushRecord(3, Work(1, 0, 1, 8), Verdict.APPLIED, True)


class Recorder:
    """A link that gives the numbers from 0 on, and keeps what it is given."""

    answers_at_once = True

    def __init__(self) -> None:
        self.pushed: list[tuple[Sequence[Slice], list[Tensor]]] = []
        self.commands: list[Command] = []

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        assert into.device.type == "cpu"
        into.copy_(torch.arange(len(into)))
        return at(7 + at_least.updates)

    async def push(self, push: Push) -> Reply:
        assert all(gradient.device.type == "cpu" for gradient in push.gradients)
        self.pushed.append((push.slices, [gradient.clone() for gradient in push.gradients]))
        return Reply(Verdict.APPLIED, "", 0, at(1), ORIGIN)

    def transferring(self) -> bool:
        return False

    async def execute(self, command: Command) -> Answer:
        self.commands.append(command)
        return ANSWER


@pytest.mark.parametrize("device", DEVICES)
def test_a_fetch_ends_on_the_device(device: str) -> None:
    into = torch.zeros(40, device=device)
    version = asyncio.run(StagedLink(Recorder(), into).fetch(into, at_least=at(3)))
    assert version == at(10)
    assert torch.equal(into.cpu(), torch.arange(40.0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_push_reaches_the_link_slice_by_slice_and_leaves_the_gradients(device: str) -> None:
    inner = Recorder()
    link = StagedLink(inner, torch.empty(40, device=device))
    gradients = [torch.full((10,), 2.0, device=device), torch.full((5,), 3.0, device=device)]
    push = Push(0, 1, 1, ORIGIN, Work(0, 0, 1, 8), (Slice(0, 10), Slice(20, 25)), gradients)
    for _ in range(2):
        reply = asyncio.run(link.push(push))
        assert reply.verdict is Verdict.APPLIED
    for slices, tensors in inner.pushed:
        assert slices == push.slices
        assert [tensor.tolist() for tensor in tensors] == [[2.0] * 10, [3.0] * 5]
    assert gradients[0].tolist() == [2.0] * 10


@pytest.mark.parametrize("device", DEVICES)
def test_a_command_is_passed_on_as_it_is_and_so_is_its_answer(device: str) -> None:
    inner, command = Recorder(), Fence(0, 1)
    assert asyncio.run(StagedLink(inner, torch.empty(40, device=device)).execute(command)) is ANSWER
    assert inner.commands == [command]
    assert inner.commands[0] is command
