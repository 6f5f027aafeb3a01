"""Kill replicas and controllers of real runs at random instants, tell some to leave, resume, and check every account.

Run by `make kills`. A seed gives the plan: whom, in which phase, how long after its beginning. The instants themselves
are the machine's, so that a failure need not come back at the first replay.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, final

from tests.lives import Life, halves, summary

BATCH = 16
_LOOK_S = 0.003
_HOW = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
"""How a replica is ended; the last one tells it to leave."""
_SIGNS = {"training": "progress", "end": "evaluating"}
"""The event that shows that a phase has begun."""
_LIFE = """
import json, sys
import distbelief as db
given = json.loads(sys.argv[1])
db.train(
    db.tasks.digits(),
    db.Downpour(replicas=given["replicas"], shards=given["shards"], batch_size=given["batch"], optimizer=db.SGD(0.05)),
    until=db.Until(epochs=given["epochs"]), directory=given["directory"], resume=True,
    checkpoint_every=db.Every(seconds=0.2), progress=False,
)
"""


class Kill(NamedTuple):
    """Whom to kill, and when."""

    target: str
    """controller or replica."""
    phase: str
    """start-up, training, checkpoint (as soon as one is being written) or end."""
    delay_s: float
    """After the phase's beginning."""


class Plan(NamedTuple):
    """A life: so many replicas and shards, and who is killed in it, in this order."""

    replicas: int
    shards: int
    kills: list[Kill]


def plan(chance: random.Random) -> Plan:
    """The next life. Replicas are killed first, and then, mostly, the controller."""
    kills = [Kill("replica", "training", chance.expovariate(2.0)) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
    phase = chance.choice(["start-up", "training", "training", "checkpoint", "checkpoint", "end", "none"])
    if phase == "start-up":
        kills = [Kill("controller", phase, chance.uniform(0.0, 5.0))]
    elif phase != "none":
        kills.append(Kill("controller", phase, chance.choice([0.0, chance.expovariate(2.0)])))
    return Plan(chance.randint(1, 3), chance.randint(1, 3), kills)


@final
class Kills:
    """Lives and runs, until enough have been killed. `epochs` a run."""

    def __init__(self, kills: int, seed: int, epochs: int, folder: Path) -> None:
        self._wanted = kills
        self._chance = random.Random(seed)
        self._epochs = epochs
        self._folder = folder
        self._may_be_partial = 0
        self._examples = 0
        self.killed: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.account: Counter[str] = Counter()
        self.lives = self.runs = 0

    def run(self) -> None:
        """Do it all. Raises `AssertionError` for what is not as it should be."""
        while self.killed.total() < self._wanted:
            directory = self._folder / f"run-{self.runs:03}"
            self._may_be_partial = 0
            while not self._live(directory):
                print(self, flush=True)
            self._check_run(directory)
            self.runs += 1
            print(self, flush=True)

    def _live(self, directory: Path) -> bool:
        """One life; returns whether the run has come to its end."""
        replicas, shards, kills = plan(self._chance)
        given = {"replicas": replicas, "shards": shards, "epochs": self._epochs, "batch": BATCH}
        newest = _newest(directory)
        life = Life(directory, ["-c", _LIFE, json.dumps({**given, "directory": str(directory)})])
        self.lives += 1
        for kill in kills:
            if self.killed.total() < self._wanted and self._kill(life, kill) and kill.target == "controller":
                break
        output = life.end()
        life.check_nothing_is_left()
        self._check_life(life, newest)
        # Each death, and each replica of a controller that was killed, may leave one push to be partial.
        self._may_be_partial += sum(e["event"] in ("died", "left") for e in life.events) + replicas
        if life.process.returncode == 0:
            return True
        assert life.process.returncode == -signal.SIGKILL, output
        return False

    def _kill(self, life: Life, kill: Kill) -> bool:
        """Wait for the instant and kill; returns whether there was anybody."""
        while not _begun(life, kill.phase):
            if not life.running:
                return False
            time.sleep(_LOOK_S)
        time.sleep(kill.delay_s)
        replicas = life.replicas if kill.target == "replica" else []
        if not life.running or (kill.target == "replica" and not replicas):
            return False
        if replicas:
            _end_now(self._chance.choice(replicas), self._chance.choice(_HOW))
        else:
            life.process.kill()
        self.killed[kill.target] += 1
        self.phases[kill.phase] += 1
        return True

    def _check_life(self, life: Life, newest: int | None) -> None:
        """It went on from the newest checkpoint, which a kill never damages."""
        for event in life.events:
            if event["event"] == "resumed":
                assert (event["examples"], event["damaged"]) == (newest, []), f"{newest} was there, but {event}"

    def _check_run(self, directory: Path) -> None:
        """Every example of every epoch is in one account, and nothing is half there."""
        told = summary(directory)
        account = told["account"]
        every = self._epochs * told["examples_per_epoch"]
        assert sum(account.values()) == told["examples"] == every, account
        assert account["refused"] == account["dropped"] == 0, account
        assert account["partial"] <= BATCH * self._may_be_partial, account
        assert _newest(directory) == every
        state = json.loads((directory / "checkpoints" / f"{every:012}" / "state.json").read_text())["content"]
        ledger = json.loads(state)["state"]["method"]["state"]
        assert (ledger["epochs_ended"], ledger["released"]) == (self._epochs, [])
        assert told["metrics"]["accuracy"] > 0.8, told["metrics"]
        assert halves(directory) == []
        assert (directory / "model.safetensors").exists()
        self._examples += every
        self.account.update(account)

    def __str__(self) -> str:
        killed = ", ".join(f"{count} {target}s" for target, count in sorted(self.killed.items()))
        phases = ", ".join(f"{count} in {phase}" for phase, count in sorted(self.phases.items()))
        account = ", ".join(f"{count:,} {name}" for name, count in self.account.items() if count)
        return (
            f"{self.killed.total()}/{self._wanted} kills: {killed or 'none'} ({phases}); {self.lives} lives, "
            f"{self.runs} runs of {self._epochs} epochs; {self._examples:,} examples: {account}"
        )


def _begun(life: Life, phase: str) -> bool:
    if phase == "checkpoint":
        return any((life.directory / "checkpoints").glob(".partial-*"))
    return phase == "start-up" or life.has(_SIGNS[phase])


def _newest(directory: Path) -> int | None:
    folder = directory / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def _end_now(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def main() -> None:
    """Print how it goes, and the command that replays the seed if anything is wrong."""
    parser = argparse.ArgumentParser(description="Kill real runs at random instants and check every account.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=100, help="of a run")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    replay = f"python -m tests.stress.kills --kills {given.kills} --epochs {given.epochs} --seed {given.seed}"
    print(replay, flush=True)
    with tempfile.TemporaryDirectory(prefix="distbelief-kills-") as folder:
        kills = Kills(given.kills, given.seed, given.epochs, Path(folder))
        try:
            kills.run()
        except AssertionError as error:
            sys.exit(f"{kills}\n{error}\nfailed; again with: {replay}")
    print("every account is exact, and nothing is left behind")


if __name__ == "__main__":
    main()
