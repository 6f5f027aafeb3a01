import json
from pathlib import Path

import pytest

import distbelief as db
from distbelief.cli import simulation_file as simulation
from distbelief.errors import UsageError

WHOLE = """
seed = 7

[compute]
kind = "PerReplica"
laws = {0 = {kind = "Constant", seconds = 1.0}}
others = {kind = "Exponential", mean = 0.1}

[network]
latency = {kind = "Lognormal", median = 0.001, sigma = 0.5}
bandwidth = 1e8
loss = 0.01

[[faults]]
kind = "Death"
machine = "replica 1"
at = 10.0

[[faults]]
kind = "Death"
machine = "replica 2"
at = 10.0
back = "never"
notice_s = 30

[[faults]]
kind = "Cut"
at = 3
seconds = 2.5
machines = ["replica 0", "shard 1"]
"""


def read(folder: Path, text: str) -> db.Simulated:
    path = folder / "bad-day.toml"
    path.write_text(text)
    return simulation.read(path)


def test_a_file_says_what_python_would(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) == db.Simulated(
        seed=7,
        compute=db.PerReplica({0: db.Constant(1.0)}, db.Exponential(0.1)),
        network=db.Network(latency=db.Lognormal(0.001, 0.5), bandwidth=1e8, loss=0.01),
        faults=[
            db.Death("replica 1", 10.0),
            db.Death("replica 2", 10.0, None, notice_s=30),
            db.Cut(3, 2.5, ("replica 0", "shard 1")),
        ],
    )


def test_times_are_taken_from_a_run(tmp_path: Path) -> None:
    progress = {"event": "progress", "replicas": [{"replica": 0, "examples_per_second": 64.0}]}
    lines = [{"event": "started", "batch_size": 32}, progress]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    engine = read(tmp_path, f'compute = {{kind = "Measured", directory = "{tmp_path}"}}')
    assert engine == db.Simulated(compute=db.Measured.of(tmp_path))


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == db.Simulated()


def test_seconds_alone_are_a_law(tmp_path: Path) -> None:
    assert read(tmp_path, "compute = 0.5") == db.Simulated(compute=0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = ", "cannot be read as TOML"),
        ("speed = 3", "the file: speed is unknown, a Simulated takes seed, compute, network, faults"),
        ("network = 3", "network must be a table"),
        ("[network]\nlag = 1", "network: lag is unknown, a Network takes latency, bandwidth"),
        ("[network]\nlatency = -1", "network: latency must be a number of 0 or more, not -1"),
        ("compute = -1", "the file: compute must be a number of 0 or more, not -1"),
        ("compute = {median = 0.1}", r"compute needs a kind, one of Constant, .*, as in \{kind = 'Constant', …\}"),
        (
            'compute = {kind = "Death", machine = "replica 0", at = 1}',
            "compute is of a kind 'Death', which is none of Con",
        ),
        ('[faults]\nkind = "Death"', r"faults must be tables, each of them \[\[faults\]\] in double brackets"),
        ('compute = {kind = "Measured", directory = "nowhere"}', "nowhere holds no run to take times from"),
        (
            '[[faults]]\nkind = "Death"\nmachine = "replica 0"\nat = -3',
            r"faults\[0\]: at must be a number of 0 or more",
        ),
        ("[network]\nloss = 2.0", "loss must be 0.5 at most, not 2.0"),
        ('compute = {kind = "Gamma"}', r"compute is of a kind 'Gamma', which is none of Constant, Lognormal, "),
        ('compute = {kind = "Constant"}', "compute needs seconds, as a Constant does"),
        ('compute = {kind = "Constant", seconds = -1.0}', "seconds must be a number of 0 or more"),
        ('[[faults]]\nkind = "Death"\nmachine = "replica 0"', r"faults\[0\] needs at, as a Death does"),
        ('[[faults]]\nkind = "Death"\nmachine = "gpu 0"\nat = 1.0', 'a machine is "replica N", "shard N"'),
        ('[[faults]]\nmachine = "replica 0"', r"faults\[0\] needs a kind, one of Death, Join, "),
        ("faults = [3]", r"faults\[0\] needs a kind"),
        ('[[faults]]\nkind = ["Death"]', r"faults\[0\] is of a kind \['Death'\]"),
        ("faults = 3", "faults must be tables"),
        ("seed = true", "seed must be a whole number"),
    ],
)
def test_nonsense_is_refused_in_a_sentence_that_names_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=r"bad-day\.toml.*" + sentence):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.toml"):
        simulation.read(tmp_path / "nowhere.toml")
