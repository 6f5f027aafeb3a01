import numpy as np
import torch

from benchmarks.networks import Thinned
from distbelief.task.data import ArrayRows, Rows, rows_of


def test_a_thinned_set_holds_each_so_manieth_example() -> None:
    inputs, targets = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    thinned = Thinned(ArrayRows((inputs, targets), "data"), 4)
    assert len(thinned) == 3
    assert isinstance(thinned, Rows)
    rows = rows_of(thinned, "data")[0]
    found = rows.batch(np.array([2, 0]))
    assert found[1].tolist() == [8, 0]
    assert torch.equal(found[0], inputs[[8, 0]])
    assert [part.tolist() for part in thinned[1]] == [[8, 9], 4]
