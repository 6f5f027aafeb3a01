"""Every error that distbelief raises, told once.

    DistBeliefError
    ├── UsageError           a value that cannot work: said at construction (also a ValueError)
    │   ├── TaskError        the task: no such file or name, not a Task, a model without parameters to train
    │   ├── DataError        the data: empty, unequal, of a kind that cannot be leased in portions
    │   └── DirectoryError   the run directory: in use, or not one
    ├── UserCodeError        the user's model, loss or data raised; shows the user's own frames
    ├── Diverged             the gradients stopped being finite, and stayed so
    ├── WorkerDied           replicas died faster than it is worth to replace them
    ├── NotWritten           the run ended, and some of its files could not be written
    ├── Deadlock             in virtual time only: every task waits, and nothing will ever happen
    └── InvariantViolated    a bug of ours: what must always hold does not

Theirs and ours never mix: everything but `InvariantViolated` is mended by the person who reads it. Errors of other
libraries are mapped to these where they enter, with the first one as the cause.
"""


class DistBeliefError(Exception):
    """The root. Its message is one sentence for a person: what, where, and how to mend it."""


class UsageError(DistBeliefError, ValueError):
    """A value that cannot work."""


class TaskError(UsageError):
    """A task that cannot be loaded or trained."""


class DataError(UsageError):
    """Data that cannot be used."""


class DirectoryError(UsageError):
    """A run directory that cannot be used."""


class UserCodeError(DistBeliefError):
    """The user's own code raised inside a replica; the message holds the user's own frames."""


class Diverged(DistBeliefError):
    """Gradient after gradient was not finite; the server's parameters are still finite."""


class WorkerDied(DistBeliefError):
    """Replicas died again and again before they did any work."""


class NotWritten(DistBeliefError):
    """Files of a run that has ended could not be written."""


class InvariantViolated(DistBeliefError):
    """A bug in distbelief."""
