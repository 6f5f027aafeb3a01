"""Which parameters a group is for, and which elements of a shard."""

from collections.abc import Sequence

import pytest
import torch

from distbelief.errors import UsageError
from distbelief.ports import Slice
from distbelief.server.groups import Group, check_patterns, cut, groups_of, remarks, split
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Adam
from distbelief.server.schedules import Cosine, Linear, Steps

NAMES = ("0.weight", "0.bias", "norm.weight", "norm.bias")


def layout(shards: int) -> Layout:
    """64, 3, 32 and 32 elements, so that the second is followed by padding."""
    sizes = zip(NAMES, (64, 3, 32, 32), strict=True)
    return Layout.of([(name, torch.zeros(size)) for name, size in sizes], shards)


def test_the_first_pattern_that_fits_wins() -> None:
    found = split(SGD(0.1, groups={"norm.*": {"lr": 1.0}, "*.bias": {"lr": 2.0}}), NAMES)
    assert [(each.lr, places) for each, places in found] == [(0.1, [0]), (1.0, [2, 3]), (2.0, [1])]


def test_without_groups_nothing_is_cut() -> None:
    assert groups_of(Adam(0.1), layout(3)) == [(), (), ()]
    slices = (Slice(0, 64), Slice(64, 67))
    (whole,) = cut((Group(Adam(0.1)),), slices)
    gradients = [torch.zeros(64), torch.zeros(3)]
    assert whole.slices == list(slices)
    assert whole.pick(gradients) is gradients


def ranges(shards: int) -> list[list[tuple[float, Sequence[Slice]]]]:
    found = groups_of(SGD(0.1, groups={"*.bias": {"lr": 1.0}}), layout(shards))
    return [[(float(str(group.rule.lr)), group.ranges) for group in groups] for groups in found]


def test_ranges_hold_each_element_once_and_padding_goes_with_its_parameter() -> None:
    assert ranges(1) == [[(0.1, (Slice(0, 64), Slice(80, 112))), (1.0, (Slice(64, 80), Slice(112, 144)))]]


def test_a_shards_ranges_count_from_its_beginning_and_groups_that_are_elsewhere_are_left_out() -> None:
    first, second, third = ranges(3)
    assert first == [(0.1, (Slice(0, 48),))]
    assert second == [(0.1, (Slice(0, 16), Slice(32, 48))), (1.0, (Slice(16, 32),))]
    assert third == [(0.1, (Slice(0, 16),)), (1.0, (Slice(16, 48),))]


def test_neighbours_of_one_group_are_one_range() -> None:
    (groups,) = groups_of(SGD(0.1, groups={"norm.*": {"lr": 1.0}}), layout(1))
    assert [group.ranges for group in groups] == [(Slice(0, 80),), (Slice(80, 144),)]


def test_a_slice_over_several_groups_is_cut_where_they_meet() -> None:
    (groups,) = groups_of(SGD(0.1, groups={"*.bias": {"lr": 1.0}}), layout(1))
    gradient = torch.arange(144)
    for part, group in zip(cut(groups, (Slice(0, 144),)), groups, strict=True):
        assert tuple(part.slices) == group.ranges
        for place, picked in zip(part.slices, part.pick([gradient]), strict=True):
            assert torch.equal(picked, gradient[place.start : place.stop])


def test_slices_of_whole_parameters_are_passed_on_as_they_are() -> None:
    """What a push is made of: no view is made for it."""
    (groups,) = groups_of(SGD(0.1, groups={"*.bias": {"lr": 1.0}}), layout(1))
    gradients = [torch.zeros(64), torch.zeros(3), torch.zeros(32), torch.zeros(32)]
    slices = (Slice(0, 64), Slice(64, 67), Slice(80, 112), Slice(112, 144))
    others, biases = (part.pick(gradients) for part in cut(groups, slices))
    assert all(a is b for a, b in zip([*others, *biases], [gradients[i] for i in (0, 2, 1, 3)], strict=True))
    assert [part.rule.lr for part in cut(groups, slices[1:2])] == [1.0]


def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are() -> None:
    check_patterns(SGD(0.1, groups={"*.bias": {}}), NAMES)
    with pytest.raises(
        UsageError, match=r"the group '\*.gain' fits no parameter of the model: there are 0.weight, 0.b"
    ):
        check_patterns(SGD(0.1, groups={"*.bias": {}, "*.gain": {}}), NAMES)
    with pytest.raises(UsageError, match=r"layer7\.weight and 92 more"):
        check_patterns(SGD(0.1, groups={"x": {}}), [f"layer{i}.weight" for i in range(100)])


def test_what_has_no_effect_is_said() -> None:
    found = remarks(SGD(Cosine(0.1, 200), groups={"*.bias": {}, "0.bias": {}, "head.*": {}}), NAMES, 1000)
    assert [line.partition(":")[0] for line in found] == [
        "the learning rate comes down to 0 after 200 examples, and stays there until the run's end after 1,000",
        "the learning rate comes down to 0 after 200 examples, and stays there until the run's end after 1,000",
        "the group '0.bias' has no effect",
        "the group 'head.*' has no effect",
    ]
    assert "patterns before it fit the same" in found[2]
    assert "not trained" in found[3]
    assert remarks(SGD(Steps({0: 0.1, 1000: 0.01})), NAMES, 1000)[0].startswith("the learning rate's step after 1,000")
    assert remarks(SGD(Linear(0.1, 1000)), NAMES, 1000) == remarks(SGD(Linear(0.1, 200)), NAMES, None) == []
