"""Parameter groups: the parameters with options of their own, and the elements of a shard that belong to them."""

from bisect import bisect_right
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

from distbelief.errors import UsageError
from distbelief.ports import Slice
from distbelief.server.layout import Layout
from distbelief.server.rules import Rule, Vectors
from distbelief.server.schedules import missed

_NAMED = 8
"""Maximum number of parameter names in an error message."""


class Group(NamedTuple):
    """A rule, and the ranges of a shard's elements that it updates; empty `ranges` mean all elements."""

    rule: Rule
    ranges: tuple[Slice, ...] = ()
    """In ascending order. The padding behind a parameter belongs to its group."""


def _places(rule: Rule, names: Sequence[str]) -> dict[str | None, list[int]]:
    """Map each pattern to the indices of its names; None: names without a pattern. The first match of a name wins."""
    patterns = list(getattr(rule, "groups", {}))
    found: dict[str | None, list[int]] = {pattern: [] for pattern in (None, *patterns)}
    for place, name in enumerate(names):
        found[next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)].append(place)
    return found


def split(rule: Rule, names: Sequence[str]) -> list[tuple[Rule, list[int]]]:
    """Return the rule of each group that has parameters, with the indices of these parameters in `names`."""
    rules: dict[str | None, Rule] = {None: rule, **getattr(rule, "variants", {})}
    return [(rules[pattern], places) for pattern, places in _places(rule, names).items() if places]


def groups_of(rule: Rule, layout: Layout) -> list[tuple[Group, ...]]:
    """Return the groups of each shard; empty tuples if `rule` itself updates all parameters."""
    parts = split(rule, [entry.name for entry in layout.entries])
    if len(parts) == 1 and parts[0][0] is rule:
        return [()] * layout.shards
    starts = [*(entry.offset for entry in layout.entries), layout.length]
    shards = []
    for low, high in pairwise(layout.borders):
        groups = (
            Group(each, _ranges([(starts[i], starts[i + 1]) for i in places], low, high)) for each, places in parts
        )
        shards.append(tuple(group for group in groups if group.ranges))
    return shards


def _ranges(spans: Sequence[tuple[int, int]], low: int, high: int) -> tuple[Slice, ...]:
    """Intersect ascending spans with the shard [low, high). Results count from `low`; adjacent ones are merged."""
    found: list[Slice] = []
    for start, stop in ((max(start, low) - low, min(stop, high) - low) for start, stop in spans):
        if found and found[-1].stop == start < stop:
            found[-1] = Slice(found[-1].start, stop)
        elif start < stop:
            found.append(Slice(start, stop))
    return tuple(found)


class Cut(NamedTuple):
    """The share of one rule in the update by a gradient with given slices."""

    rule: Rule
    slices: list[Slice]
    picks: list[tuple[int, slice | None]] | None
    """For each slice, the index of its gradient and the elements to take from it (None: all).

    `picks=None`: the i-th slice takes the whole i-th gradient.
    """

    def pick(self, gradients: Vectors) -> Vectors:
        """The gradients of these slices."""
        if self.picks is None:
            return gradients
        return [gradients[i] if part is None else gradients[i][part] for i, part in self.picks]


def cut(groups: Sequence[Group], slices: Sequence[Slice]) -> list[Cut]:
    """Divide the slices of a gradient among the groups. Each element belongs to exactly one group."""
    if len(groups) == 1:
        return [Cut(groups[0].rule, list(slices), None)]
    ordered = sorted((span, number) for number, group in enumerate(groups) for span in group.ranges)
    starts = [span.start for span, _ in ordered]
    cuts: list[tuple[list[Slice], list[tuple[int, slice | None]]]] = [([], []) for _ in groups]
    for i, (start, stop) in enumerate(slices):
        at = bisect_right(starts, start) - 1
        while at < len(ordered) and starts[at] < stop:
            span, number = ordered[at]
            part = Slice(max(start, span.start), min(stop, span.stop))
            whole = part == (start, stop)
            cuts[number][0].append(part)
            cuts[number][1].append((i, None if whole else slice(part.start - start, part.stop - start)))
            at += 1
    return [Cut(group.rule, *found) for group, found in zip(groups, cuts, strict=True) if found[0]]


def check_patterns(rule: Rule, names: Sequence[str]) -> None:
    """Raise `UsageError` for a group whose pattern fits none of the names of a model's parameters."""
    for pattern in getattr(rule, "groups", {}):
        if not any(fnmatchcase(name, pattern) for name in names):
            rest = len(names) - _NAMED
            listed = ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
            raise UsageError(f"the group {pattern!r} fits no parameter of the model: there are {listed}")


def remarks(rule: Rule, names: Sequence[str], end: int | None) -> list[str]:
    """Describe the settings of a rule that have no effect in a run that trains the parameters `names`.

    The rule's schedules must be resolved, see `resolved_rule`. `end`: examples after which the run ends; None if only
    time or metrics end it.
    """
    rates = [each.lr for each, _ in split(rule, names)]
    empty = [pattern for pattern, places in _places(rule, names).items() if pattern is not None and not places]
    return [
        *(line for lr in rates if end is not None and (line := missed(lr, end)) is not None),
        *(f"the group {pattern!r} has no effect: {_why_empty(pattern, names)}" for pattern in empty),
    ]


def _why_empty(pattern: str, names: Sequence[str]) -> str:
    fits = any(fnmatchcase(name, pattern) for name in names)
    return "patterns before it fit the same parameters" if fits else "what it fits is not trained"
