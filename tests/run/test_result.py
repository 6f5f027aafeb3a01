"""What a run came to; that all of it is in the summary is shown by runs."""

from distbelief.run.result import quantile


def test_quantiles_of_a_histogram() -> None:
    histogram = [50, 0, 49, 0, 1]
    assert [quantile(histogram, q) for q in (0.1, 0.5, 0.51, 0.99, 1.0)] == [0, 0, 2, 2, 4]
    assert quantile([0] * 5, 0.5) == quantile([], 0.5) == 0
