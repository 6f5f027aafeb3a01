"""The figures of a run for Prometheus, by way of Ray, which exports them on the machine of the run's own process.

Prometheus sees them with `ray_` before their names; docs/cluster.md lists them.
"""

from typing import final

from ray.util.metrics import Counter, Gauge

from distbelief.observe.events import Status


@final
class Metrics:
    """Set by the driver; `run` tags all of them."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._totals = {
            name: Counter(f"distbelief_{name}", f"{told}.", ("run",))
            for name, told in (
                ("examples", "Examples used over the run's life"),
                ("updates", "Updates of the parameters over the run's life"),
                ("deaths", "Replicas that have died since the run was begun or resumed"),
            )
        }
        self._told = dict.fromkeys(self._totals, 0)
        self._working = Gauge("distbelief_replicas_working", "Replicas at work.", ("run",))
        self._speed = Gauge("distbelief_examples_per_second", "Examples per second of a replica.", ("run", "replica"))
        self._staleness = Gauge(
            "distbelief_staleness", "Updates between fetch and push, of a replica's last push.", ("run", "replica")
        )

    def set(self, status: Status, deaths: int) -> None:
        """Tell how the run stands."""
        for name, total in {"examples": status.examples, "updates": status.updates, "deaths": deaths}.items():
            # Updates that a shard has lost with its machine are counted once.
            if (more := total - self._told[name]) > 0:
                self._totals[name].inc(more, self._run)
                self._told[name] = total
        self._working.set(sum(replica.state == "working" for replica in status.replicas), self._run)
        for replica in status.replicas:
            tags = {**self._run, "replica": str(replica.replica)}
            self._speed.set(replica.examples_per_second, tags)
            self._staleness.set(replica.staleness, tags)
