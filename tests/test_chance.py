from typing import Any

import torch

from distbelief.chance import derive, generator, order


def test_a_seed_is_derived_from_what_it_is_for() -> None:
    keys: list[tuple[Any, ...]] = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        (0, "a", 1),
        (0, "a", 2),
        (0, 1, "a"),
        (0, "a", 1, 1),
        (0, "a", 11),
    ]
    assert len({derive(*key) for key in keys}) == len(keys)
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(-500, 500))


def test_a_generator_is_ones_own() -> None:
    state = torch.get_rng_state()
    drawn = torch.rand(5, generator=generator(0, "a"))
    assert torch.equal(drawn, torch.rand(5, generator=generator(0, "a")))
    assert not torch.equal(drawn, torch.rand(5, generator=generator(0, "b")))
    assert torch.equal(state, torch.get_rng_state())


def test_an_order_is_a_permutation_and_public() -> None:
    for examples in (1, 2, 1000):
        found = order(3, 7, examples)
        assert found.dtype == torch.int64
        assert torch.equal(found.sort().values, torch.arange(examples))
    assert torch.equal(order(3, 7, 1000), order(3, 7, 1000))
    assert not torch.equal(order(3, 7, 1000), order(3, 8, 1000))
    assert not torch.equal(order(3, 7, 1000), order(4, 7, 1000))


def test_chance_is_the_same_in_every_process_and_for_good() -> None:
    """A run that is resumed, by whichever process and whenever, goes on in the same order."""
    assert derive(5, "order", 3) == 7405973591090583429
