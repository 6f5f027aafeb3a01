"""The trace of a simulated run: its digest, and the rules that whatever happens must keep.

Events and verdicts go into the digest, floats do not: another machine may round another way, and the order in which
things happen is what a seed decides.
"""

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import final

from distbelief.allocation import Account
from distbelief.engines import actions
from distbelief.errors import InvariantViolated
from distbelief.ports import ORIGIN, Answer, Command, Push, Reply, Restore, SetLiving, Snapshot, Verdict, Version
from distbelief.server.admission import Admission, Bounded
from distbelief.server.block import in_pushes
from distbelief.server.register import SEEN

_LOGGER = logging.getLogger("distbelief.trace")


@final
class Trace:
    """What happened, in order. The logger "distbelief.trace" shows it line by line, at level DEBUG."""

    def __init__(self, admission: Admission) -> None:
        self.notes = 0
        """How much has happened."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._shown = _LOGGER.isEnabledFor(logging.DEBUG)
        self._bound = 0 if admission.round > 1 else admission.versions if isinstance(admission, Bounded) else math.inf
        self._counts_living = admission.round > 1 or admission.lead is not None
        self.begin_life(Account(), 0)

    @property
    def digest(self) -> str:
        """Of all that has happened so far."""
        return self._digest.hexdigest()

    def note(self, *what: str | int) -> None:
        """Something happened."""
        self.notes += 1
        line = " ".join(map(str, what))
        self._digest.update(line.encode() + b"\n")
        if self._shown:
            _LOGGER.debug(line)

    def note_once(self, *what: str | int) -> None:
        """Something happened that may be told again."""
        if what not in self._once:
            self._once.add(what)
            self.note(*what)

    def wanted(self, action: actions.Action, stopped_by: str) -> None:
        """The controller wants something. `stopped_by`: why it ends the run, if it does."""
        match action:
            case actions.StopWork():
                self.note("stop", stopped_by)
            case actions.Lost(replica, incarnation):
                self.fenced(replica, incarnation)
            case actions.SetAside(epoch, batch):
                self.note("set aside", epoch, batch)
            case actions.WriteCheckpoint(snapshots, total):
                self.captured(snapshots, total)
            case actions.RestoreShard():
                self.restored()

    def pushed(self, shard: int, push: Push, reply: Reply) -> None:
        """A shard answered a push. Raises `InvariantViolated` where it must not have answered so."""
        replica, incarnation, sequence = push.replica, push.incarnation, push.sequence
        verdict = reply.verdict.name.lower()
        self.note("push", shard, replica, incarnation, sequence, verdict, reply.staleness, *reply.version)
        self.saw(shard, reply.version)
        self._answered(shard, push, reply)
        if not reply.verdict.used or reply.reason == SEEN:
            return
        living = self._living[shard].replicas if shard in self._living else frozenset()
        # One push of a replica is under way at a time, so that what comes later has a higher number.
        broken = {
            " twice, or after a later one": sequence <= self._used[shard, replica, incarnation],
            ", which was declared dead before": incarnation <= self._fenced[replica],
            ", which was computed in another term": push.version.term != reply.version.term,
            ", and did not count it among the living": self._counts_living and living and replica not in living,
            f", whose staleness {reply.staleness} is beyond {self._bound}": reply.staleness > self._bound,
        }
        for how, so in broken.items():
            if so:
                raise InvariantViolated(f"shard {shard} used push {sequence} of replica {replica}.{incarnation}{how}")
        self._used[shard, replica, incarnation] = sequence
        if sequence > self._counted[replica, incarnation]:
            self._counted[replica, incarnation] = sequence
            self._examples += push.work.examples

    def _answered(self, shard: int, push: Push, reply: Reply) -> None:
        replica, number = push.replica, (push.incarnation, push.sequence)
        if self._newest[replica] < number:
            self._newest[replica], self._answers[replica] = number, {}
        if self._newest[replica] == number:
            # The first answer: what is held may be refused when it comes again, if the shard has lost its memory.
            self._answers[replica].setdefault(shard, reply.verdict)
        if self._promised[shard, replica][0] < reply.at_least:
            self._promised[shard, replica] = reply.at_least, number

    def saw(self, shard: int, version: Version) -> None:
        """A version of a shard was told to somebody. Raises `InvariantViolated` if it is older than one before."""
        if version < self._versions[shard]:
            raise InvariantViolated(f"shard {shard} went back from version {self._versions[shard]} to {version}")
        self._versions[shard] = version

    def asked(self, shard: int, machine: str, at_least: Version) -> None:
        """A machine fetches, and waits for a version if the shard has not come to it.

        Raises `InvariantViolated` if that is what its last push was answered with, and another shard turned that push
        away: the round there lacks it. Where replicas wait so for each other's rounds, none goes on.
        """
        replica = int(machine.split()[1])
        refused = [other for other, verdict in self._answers[replica].items() if not verdict.used]
        # What an earlier push was answered with may be asked for late, also by an incarnation that is held to be dead.
        if refused and self._promised[shard, replica] == (at_least, self._newest[replica]):
            raise InvariantViolated(f"{machine} waits at shard {shard}, and shard {refused[0]} turned its push away")

    def obeyed(self, shard: int, command: Command, living: int, fenced: Sequence[int]) -> None:
        """A shard has obeyed a command, or has seen that it was overtaken; whom it then counts as living and as dead.

        Raises `InvariantViolated` where the living are not those of the newest command, and where it would take a push
        of an incarnation that every shard has been told is dead: a restored shard has to know of it too.
        """
        for replica, incarnation in self._fenced.items():
            if fenced[replica] < incarnation:
                raise InvariantViolated(f"shard {shard} has forgotten that replica {replica}.{incarnation} is dead")
        if isinstance(command, Restore):
            command = command.living
        if isinstance(command, SetLiving) and (
            shard not in self._living or command.number > self._living[shard].number
        ):
            self._living[shard] = command
            self.note("living", shard, command.number)
        if shard in self._living and living != len(self._living[shard].replicas):
            raise InvariantViolated(f"shard {shard} counts {living} living: it has obeyed what was overtaken")

    def captured(self, snapshots: Sequence[Answer], total: Account) -> None:
        """A checkpoint is about to be written, of these shards and with this account of all lives.

        Raises `InvariantViolated` where one does not belong to the other: a run that goes on from it would lose
        examples, or use them again.
        """
        self.note("checkpoint", total.total)
        if self._restored:
            return
        held = [in_pushes(snapshot) - self._held for snapshot in snapshots if isinstance(snapshot, Snapshot)]
        used, partial = total.used - self._before.used, total.partial - self._before.partial
        # One of several shards may lack what reached another before that was copied, or what it refused.
        if max(held) > used + partial or (len(held) == 1 and held[0] < used):
            told = f"{used} examples, and {partial} in part"
            raise InvariantViolated(f"a checkpoint accounts for {told}, and its shards hold {held}")

    def fenced(self, replica: int, incarnation: int) -> None:
        """Every shard has been told that an incarnation is dead."""
        self.note("fence", replica, incarnation)
        self._fenced[replica] = incarnation

    def restored(self) -> None:
        """A shard has gone back to what was written down: what it had used since is not in the ledger's account."""
        self._restored = True

    def begin_life(self, before: Account, held: int) -> None:
        """A controller begins, with incarnations of its own, and shards that begin with `held` examples."""
        self._before, self._held = before, held
        self._examples = 0
        self._restored = False
        self._used: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        self._counted: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._versions: defaultdict[int, Version] = defaultdict(lambda: ORIGIN)
        self._fenced: defaultdict[int, int] = defaultdict(int)
        self._newest: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._answers: defaultdict[int, dict[int, Verdict]] = defaultdict(dict)
        """Of each replica's newest push, at each shard."""
        self._promised: defaultdict[tuple[int, int], tuple[Version, tuple[int, int]]]
        self._promised = defaultdict(lambda: (ORIGIN, (0, 0)))
        """The latest version that a shard had a replica wait for, and after which push."""
        self._once: set[tuple[str | int, ...]] = set()
        self._living: dict[int, SetLiving] = {}

    def check(self, total: Account) -> None:
        """Raise `InvariantViolated` unless the examples of this life, by the ledger's account, are those of the pushes.

        Every example in a push that some shard used is in the account once; what is partial may have been used or not.
        """
        used, partial = total.used - self._before.used, total.partial - self._before.partial
        if not self._restored and not used <= self._examples <= used + partial:
            told = f"{used}, and {partial} in part"
            raise InvariantViolated(f"{self._examples} examples were in pushes that shards used; the ledger has {told}")
