"""DistBelief (Dean et al., NIPS 2012): asynchronous training on machines that are slow, unlike each other, and die."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distbelief import tasks
    from distbelief.downpour.method import Downpour
    from distbelief.engines.local import Local
    from distbelief.engines.ray import Ray
    from distbelief.engines.simulated import Simulated
    from distbelief.engines.simulated.faults import Cut, Death, Join, Pause, Slow
    from distbelief.engines.simulated.laws import Constant, Exponential, Lognormal, Measured, PerReplica, Spread
    from distbelief.engines.simulated.network import Network
    from distbelief.errors import DistBeliefError
    from distbelief.observe.tensorboard import TensorBoard
    from distbelief.run.run import Run, load
    from distbelief.run.until import Every, Until
    from distbelief.server.admission import Asynchronous, Bounded, Buffered, Paced, StalenessScaled
    from distbelief.server.rules import SGD, Adagrad, Adam, AdamW
    from distbelief.server.schedules import Cosine, Linear, Steps
    from distbelief.task.task import Metric, Task, accuracy
    from distbelief.training import train

__all__ = ["Task", "Metric", "accuracy", "tasks", "train", "Until", "Every", "Run", "load", "DistBeliefError"]
__all__ += ["Downpour", "SGD", "Adagrad", "Adam", "AdamW", "Cosine", "Linear", "Steps"]
__all__ += ["Asynchronous", "StalenessScaled", "Bounded", "Paced", "Buffered"]
__all__ += ["Local", "Ray", "Simulated", "Constant", "Exponential", "Lognormal", "Measured", "PerReplica", "Spread"]
__all__ += ["Cut", "Death", "Join", "Pause", "Slow", "Network", "TensorBoard"]

_HOMES = {
    "downpour.method": ("Downpour",),
    "engines.local": ("Local",),
    "engines.ray": ("Ray",),
    "engines.simulated": ("Simulated",),
    "engines.simulated.faults": ("Cut", "Death", "Join", "Pause", "Slow"),
    "engines.simulated.laws": ("Constant", "Exponential", "Lognormal", "Measured", "PerReplica", "Spread"),
    "engines.simulated.network": ("Network",),
    "errors": ("DistBeliefError",),
    "observe.tensorboard": ("TensorBoard",),
    "run.run": ("Run", "load"),
    "server.admission": ("Asynchronous", "Bounded", "Buffered", "Paced", "StalenessScaled"),
    "server.rules": ("SGD", "Adagrad", "Adam", "AdamW"),
    "server.schedules": ("Cosine", "Linear", "Steps"),
    "task.task": ("Metric", "Task", "accuracy"),
    "training": ("train",),
    "run.until": ("Every", "Until"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds that the command line can use better."""
    if name == "tasks":
        return import_module("distbelief.tasks")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"distbelief.{home}"), name)
    raise AttributeError(f"module 'distbelief' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
