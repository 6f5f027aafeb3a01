"""Every admission policy, in whole runs of every engine on this machine."""

from pathlib import Path

import pytest

import distbelief as db
from distbelief.server.admission import Admission
from tests import problems

EXAMPLES = 640
EPOCHS = 5
REPLICAS = 3
POLICIES: list[Admission] = [
    db.Asynchronous(),
    db.StalenessScaled(),
    db.Bounded(0),
    db.Paced(1),
    db.Buffered(2),
    db.Buffered(3),
]
ENGINES = {"local": db.Local(threads=1), "simulated": db.Simulated(compute=db.Lognormal(0.1, 0.5))}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_keeps_its_word(tmp_path: Path, policy: Admission, engine: db.Local | db.Simulated) -> None:
    run = db.train(
        problems.task(),
        db.Downpour(replicas=REPLICAS, shards=2, optimizer=db.Adagrad(0.05), admission=policy),
        engine=engine,
        until=db.Until(epochs=EPOCHS),
        directory=tmp_path / "run",
        progress=False,
    )
    s = run.summary
    assert sum(s["account"].values()) == EPOCHS * EXAMPLES
    assert s["account"]["refused"] == s["account"]["partial"] == 0
    if isinstance(policy, db.Bounded):
        assert s["staleness"]["max"] <= policy.versions
    elif policy.round > 1:
        assert s["staleness"]["max"] == 0, "nothing of one round is used in the next"
        if policy.round == REPLICAS:
            assert s["account"]["dropped"] <= 4 * 32, "nobody is late but where the data end"
    else:
        assert s["account"]["dropped"] == s["rejected"] == 0
    if isinstance(engine, db.Simulated) and policy == db.Bounded(0):
        assert s["account"]["dropped"] > 0, "three at once are stale now and then"
