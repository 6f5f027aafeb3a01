"""Methods as JSON, and back."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import distbelief as db
from distbelief.errors import DirectoryError
from distbelief.run.description import describe, revive
from distbelief.run.directory import stored_method


def test_a_method_is_told_in_full() -> None:
    method = describe(db.Downpour(optimizer=db.SGD(db.Cosine(0.1, 1000)), admission=db.Buffered(2)))
    assert method["kind"] == "Downpour"
    assert method["optimizer"]["lr"] == {"kind": "Cosine", "peak": 0.1, "examples": 1000, "warmup": 0, "floor": 0}
    assert method["admission"] == {"kind": "Buffered", "m": 2}
    json.dumps(method)


@pytest.mark.parametrize(
    "method",
    [
        db.Downpour(),
        db.Downpour(replicas=3, shards=2, batch_size=8, optimizer=db.Adam(db.Cosine(0.1, 1000, warmup=10), eps=1e-6)),
        db.Downpour(optimizer=db.SGD(db.Steps({0: 0.1, 1000: 0.01}), momentum=0.5, nesterov=True)),
        db.Downpour(
            optimizer=db.AdamW(
                db.Linear(0.1, warmup=0.05), groups={"*.bias": {"lr": db.Cosine(0.1), "betas": (0.8, 0.9)}}
            ),
            average=0.999,
        ),
        # Patterns that look like other things of a description.
        db.Downpour(optimizer=db.SGD(0.1, groups={"0": {"lr": 1.0}, "kind": {"lr": 1.0}, "format": {"momentum": 0.5}})),
        db.Downpour(admission=db.Buffered(4), overlap=0, clip_norm=1.5, warmstart=100),
        db.Downpour(n_fetch=3, n_push=2, local_optimizer=db.AdamW(0.1, betas=(0.8, 0.9)), overlap=1),
    ],
    ids=str,
)
def test_what_was_described_comes_back(method: db.Downpour) -> None:
    assert json.loads(json.dumps(describe(method)), object_hook=revive) == method


@dataclass(frozen=True)
class Signs:
    """A schedule of the user's own."""

    lr: float = 0.1

    def __call__(self, examples: int) -> float:
        return self.lr


@pytest.mark.parametrize(
    "content",
    [
        describe(replace(db.Downpour(), optimizer=db.SGD(Signs()))),
        {"kind": "Nothing"},
        {"kind": "Downpour", "replica": 2},
        {"kind": "Downpour", "replicas": -2},
    ],
    ids=str,
)
def test_what_cannot_be_read_back_is_one_sentence(content: object, tmp_path: Path) -> None:
    (tmp_path / "method.json").write_text(json.dumps(content))
    with pytest.raises(DirectoryError, match=f"read back from {tmp_path}/method.json .*: give the method again"):
        stored_method(tmp_path)
