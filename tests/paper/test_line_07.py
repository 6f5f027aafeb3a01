"""Line 7. A machine talks only to the shards that hold *its* parameters.

A machine that holds the whole model talks to all of them, and tells each what lies in its range and nothing else.
"""

import torch

from distbelief.chance import generator
from distbelief.downpour.method import Downpour
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD
from tests.replicas import Portions, run_replica

LAYOUT = Layout.of([("a", torch.empty(10, 7)), ("b", torch.empty(33)), ("c", torch.empty(20))], 3)


def test_each_shard_is_sent_its_own_range_and_nothing_else() -> None:
    chance = generator(0, "line 7")
    tensors = [torch.randn(entry.shape, generator=chance) for entry in LAYOUT.entries]
    vector = torch.zeros(LAYOUT.length)
    LAYOUT.gather_(vector, tensors)
    recording = run_replica(
        Downpour(optimizer=SGD(0.1)), Portions((0, 1)), lambda *_: [t.clone() for t in tensors], layout=LAYOUT
    )
    for shard in range(3):
        (push,) = recording.pushes_to(shard)
        part = LAYOUT.part(vector, shard)
        for (start, stop), gradient in zip(push.slices, push.gradients, strict=True):
            assert torch.equal(gradient, part[start:stop])
    sent = sum(g.numel() for shard in range(3) for push in recording.pushes_to(shard) for g in push.gradients)
    assert sent == LAYOUT.parameters
