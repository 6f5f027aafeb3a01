import asyncio
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distbelief.engines.simulated.loop import Deadlock, VirtualLoop, simulate

SEEDS = range(40)


def order_of_tasks(seed: int) -> list[int]:
    """The order in which 20 tasks go their three steps, some of which end at the same instant."""
    order: list[int] = []

    async def walk(task: int) -> None:
        for step in range(3):
            order.append(task)
            await asyncio.sleep(step * 0.5)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for task in range(20):
                group.create_task(walk(task))

    simulate(main(), seed=seed)
    return order


def order_of_cancellations(seed: int) -> list[int]:
    """The order in which a failing TaskGroup's tasks meet their end: asyncio walks through a set of them."""
    order: list[int] = []

    async def wait(task: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(task)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for task in range(20):
                group.create_task(wait(task))
            await asyncio.sleep(1)
            raise ValueError

    with pytest.raises(ExceptionGroup):
        simulate(main(), seed=seed)
    return order


def both_orders(seed: int) -> str:
    return f"{order_of_tasks(seed)} {order_of_cancellations(seed)}"


def check(loop: VirtualLoop) -> None:
    """No deadline lies in the past, and the timers are a heap."""
    whens = [timer[0] for timer in loop._timers]
    assert all(when > loop.time() for when in whens)
    assert all(whens[(child - 1) // 2] <= whens[child] for child in range(1, len(whens)))


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("mine")


class TestOrder:
    def test_equal_seeds_give_equal_schedules(self) -> None:
        assert both_orders(3) == both_orders(3)

    def test_different_seeds_give_different_schedules(self) -> None:
        assert len({tuple(order_of_tasks(seed)) for seed in SEEDS}) == len(SEEDS)

    def test_a_task_keeps_its_own_steps_in_order(self) -> None:
        async def main() -> list[tuple[int, int]]:
            steps: list[tuple[int, int]] = []

            async def walk(task: int) -> None:
                for step in range(10):
                    steps.append((task, step))
                    await asyncio.sleep(0)

            await asyncio.gather(*(walk(task) for task in range(5)))
            return steps

        for seed in SEEDS:
            steps = simulate(main(), seed=seed)
            assert all([s for t, s in steps if t == task] == list(range(10)) for task in range(5))

    def test_equal_deadlines_are_drawn(self) -> None:
        async def main() -> str:
            loop, order = asyncio.get_running_loop(), list[str]()
            for name in "abc":
                loop.call_at(1.0, order.append, name)
            await asyncio.sleep(2)
            return "".join(order)

        assert {simulate(main(), seed=seed) for seed in SEEDS} == {"abc", "acb", "bac", "bca", "cab", "cba"}

    def test_callbacks_of_one_future_keep_their_order(self) -> None:
        async def main() -> str:
            loop, order = asyncio.get_running_loop(), list[str]()
            future = loop.create_future()
            for name in "abcd":
                future.add_done_callback(partial(lambda name, _: order.append(name), name))
            loop.call_soon(order.append, "x")
            future.set_result(None)
            await asyncio.sleep(1)
            return "".join(order)

        orders = {simulate(main(), seed=seed) for seed in SEEDS}
        assert {order.replace("x", "") for order in orders} == {"abcd"}
        assert len(orders) > 2

    def test_neither_hashes_nor_addresses_matter(self) -> None:
        program = "from tests.engines.simulated import test_loop as t; print(t.both_orders(5))"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=Path(__file__).parents[3],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                stdout=subprocess.PIPE,
                text=True,
            )
            for hash_seed in ("1", "2")
        ]
        said = {process.communicate()[0].strip() for process in processes}
        assert said == {both_orders(5)}

    def test_names_of_tasks_begin_anew(self) -> None:
        async def main() -> str:
            return asyncio.create_task(asyncio.sleep(0)).get_name()

        assert [simulate(main(), seed=0) for _ in range(2)] == ["Task-2", "Task-2"]


class TestTime:
    def test_an_hour_passes_in_no_time(self) -> None:
        async def main() -> float:
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(3600)
            return asyncio.get_running_loop().time() - before

        start = time.monotonic()
        assert simulate(main(), seed=0) == 3600
        assert time.monotonic() - start < 60

    def test_time_stands_still_while_anything_is_ready(self) -> None:
        async def main() -> float:
            loop = asyncio.get_running_loop()
            sleeper = asyncio.create_task(asyncio.sleep(1))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sleeper.done()
            return loop.time()

        assert simulate(main(), seed=0) == 0

    def test_a_cancelled_timer_does_not_move_the_clock(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_later(5, print).cancel()
            await asyncio.sleep(1)
            await for_ever()

        with pytest.raises(Deadlock, match=r"^at 1\.0 s"):
            simulate(main(), seed=0)

    def test_what_is_cancelled_while_ready_does_not_run(self) -> None:
        async def main() -> list[int]:
            loop, ran = asyncio.get_running_loop(), list[int]()
            handles = [loop.call_soon(ran.append, 1), loop.call_later(0, ran.append, 2)]
            for handle in handles:
                handle.cancel()
            await asyncio.sleep(1)
            return ran

        assert simulate(main(), seed=0) == []

    def test_cancelled_timers_do_not_pile_up(self) -> None:
        async def main(loop: VirtualLoop) -> None:
            for _ in range(5000):
                async with asyncio.timeout(1e6):
                    await asyncio.sleep(0.01)
            check(loop)

        loop = VirtualLoop(0)
        loop.run_until_complete(main(loop))
        assert len(loop._timers) <= 1001
        loop.close()

    def test_a_deadline_in_the_past_is_now(self) -> None:
        async def main() -> float:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(2)
            done = loop.create_future()
            loop.call_at(1, done.set_result, None)
            await done
            return loop.time()

        assert simulate(main(), seed=0) == 2

    def test_a_deadline_must_be_a_number(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_at(math.nan, print)

        with pytest.raises(ValueError, match="not a number"):
            simulate(main(), seed=0)


class TestAsyncio:
    """What the product uses of asyncio, under many schedules."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_a_task_group_fails_once(self, seed: int) -> None:
        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(for_ever())
                await group.create_task(fail())

        with pytest.raises(ExceptionGroup) as caught:
            simulate(main(), seed=seed)
        assert [str(error) for error in caught.value.exceptions] == ["mine"]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_queue_and_timeout(self, seed: int) -> None:
        async def main() -> tuple[list[int], float]:
            queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
            taken: list[int] = []

            async def produce() -> None:
                for number in range(20):
                    await queue.put(number)
                    await asyncio.sleep(0.25)

            async def consume() -> None:
                while True:
                    taken.append(await queue.get())

            async with asyncio.TaskGroup() as group:
                consumers = [group.create_task(consume()) for _ in range(3)]
                group.create_task(produce())
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(30):
                        await asyncio.wait(consumers)
                for consumer in consumers:
                    consumer.cancel()
            return taken, asyncio.get_running_loop().time()

        assert simulate(main(), seed=seed) == (list(range(20)), 30)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_condition_lock_and_gather(self, seed: int) -> None:
        async def main() -> list[int]:
            condition, lock, turn, inside = asyncio.Condition(), asyncio.Lock(), 0, 0

            async def take(number: int) -> int:
                nonlocal turn, inside
                async with condition:
                    await condition.wait_for(lambda: turn == number)
                    turn += 1
                    condition.notify_all()
                async with lock:
                    inside += 1
                    await asyncio.sleep(1)
                    assert inside == 1
                    inside -= 1
                return number

            return await asyncio.gather(*(take(number) for number in range(8)))

        assert simulate(main(), seed=seed) == list(range(8))

    def test_cancellation_runs_the_clean_up_and_shield_protects(self) -> None:
        async def main() -> list[str]:
            said: list[str] = []

            async def careful() -> None:
                try:
                    await for_ever()
                finally:
                    await asyncio.sleep(1)
                    said.append("cleaned up")

            async def protected() -> None:
                await asyncio.sleep(5)
                said.append("came through")

            inner = asyncio.create_task(protected())
            tasks = [asyncio.create_task(careful()), asyncio.create_task(asyncio.wait_for(asyncio.shield(inner), 99))]
            await asyncio.sleep(1)
            for task in tasks:
                task.cancel()
            await asyncio.wait([*tasks, inner])
            assert all(task.cancelled() for task in tasks)
            return said

        assert simulate(main(), seed=0) == ["cleaned up", "came through"]

    def test_it_serves_asyncio_runner(self) -> None:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(0), debug=True) as runner:
            assert runner.run(asyncio.sleep(3600, "slept")) == "slept"

    @pytest.mark.parametrize("seed", range(5))
    def test_stress_keeps_the_invariants(self, seed: int) -> None:
        chance = random.Random(seed)

        async def wander(loop: VirtualLoop, tasks: list[asyncio.Task[None]]) -> None:
            for _ in range(20):
                await asyncio.sleep(chance.choice([0, 0.1, chance.random()]))
                check(loop)
                if len(tasks) < 100:
                    tasks.append(asyncio.create_task(wander(loop, tasks)))
                if chance.random() < 0.1:
                    chance.choice(tasks).cancel()

        async def main(loop: VirtualLoop) -> None:
            tasks: list[asyncio.Task[None]] = []
            tasks.append(asyncio.create_task(wander(loop, tasks)))
            while pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending)

        loop = VirtualLoop(seed)
        loop.run_until_complete(main(loop))
        check(loop)
        loop.close()


class TestFailures:
    def test_mains_exception_comes_out(self) -> None:
        with pytest.raises(ValueError, match="mine"):
            simulate(fail(), seed=0)

    def test_a_callback_that_raises_ends_the_run(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_later(1, lambda: 1 // 0)
            await asyncio.sleep(2)

        with pytest.raises(ZeroDivisionError):
            simulate(main(), seed=0)

    def test_a_failed_task_that_nobody_can_ask_ends_the_run(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_soon(asyncio.create_task, fail())
            await asyncio.sleep(2)

        with pytest.raises(ValueError, match="mine") as caught:
            simulate(main(), seed=0)
        assert "never retrieved" in caught.value.__notes__[0]

    def test_what_left_tasks_raise_is_not_lost(self) -> None:
        async def fail_late() -> None:
            try:
                await for_ever()
            finally:
                raise KeyError("late")

        async def main(error: Exception | None) -> None:
            left.append(asyncio.create_task(fail_late()))
            await asyncio.sleep(1)
            if error is not None:
                raise error

        left: list[asyncio.Task[None]] = []
        with pytest.raises(ExceptionGroup, match="outlived") as group:
            simulate(main(None), seed=0)
        assert isinstance(group.value.exceptions[0], KeyError)
        with pytest.raises(ValueError, match="first") as caught:
            simulate(main(ValueError("first")), seed=0)
        assert "KeyError('late')" in caught.value.__notes__[0]

    def test_deadlock_names_who_waits_where(self) -> None:
        async def hold(mine: asyncio.Lock, other: asyncio.Lock) -> None:
            async with mine:
                await asyncio.sleep(1)
                async with other:
                    pass

        async def main() -> None:
            one, two = asyncio.Lock(), asyncio.Lock()
            async with asyncio.TaskGroup() as group:
                group.create_task(hold(one, two), name="left")
                group.create_task(hold(two, one), name="right")

        with pytest.raises(Deadlock) as caught:
            simulate(main(), seed=0)
        first, *lines = str(caught.value).splitlines()
        assert first == "at 1.0 s nothing is ready, no deadline is left, and 3 task(s) wait:"
        assert [line.split()[0] for line in lines] == ["Task-1", "left", "right"]
        assert all("locks.py" in line and "Lock.acquire" in line for line in lines[1:])
        assert all(f"{__file__}:" in line and "hold" in line for line in lines[1:])

    def test_waiting_for_infinity_is_a_deadlock(self) -> None:
        with pytest.raises(Deadlock, match=r"1 task\(s\) wait"):
            simulate(asyncio.sleep(math.inf), seed=0)

    def test_stopping_early_is_said(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().stop()
            await for_ever()

        with pytest.raises(RuntimeError, match="stopped before"):
            simulate(main(), seed=0)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda: asyncio.to_thread(order_of_tasks, 1),
            lambda: asyncio.get_running_loop().add_signal_handler(2, print),
            lambda: asyncio.get_running_loop().call_soon_threadsafe(print),
            lambda: asyncio.open_connection("localhost", 80),
            lambda: asyncio.create_subprocess_exec("true"),
        ],
    )
    def test_the_outside_world_is_refused(self, ask: Callable[[], Any]) -> None:
        async def main() -> None:
            await ask()

        with pytest.raises(RuntimeError, match="virtual time knows no threads, sockets"):
            simulate(main(), seed=0)

    def test_a_closed_loop_takes_nothing(self) -> None:
        loop = VirtualLoop(0)
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.call_soon(print)
        with pytest.raises(RuntimeError, match="closed"):
            loop.run_forever()


class TestCleanUp:
    def test_left_tasks_are_cancelled_and_generators_closed(self) -> None:
        said: list[str] = []

        async def left() -> None:
            try:
                await for_ever()
            finally:
                said.append("task")

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(1)
                said.append("generator")

        async def main() -> None:
            kept.append(asyncio.create_task(left()))
            kept.append(numbers())
            await anext(kept[1])

        kept: list[Any] = []
        simulate(main(), seed=0)
        assert said == ["task", "generator"]

    @pytest.mark.parametrize("inner", [partial(asyncio.sleep, 3600, "slept"), fail], ids=["returns", "raises"])
    def test_it_runs_inside_a_running_loop(self, inner: Callable[[], Coroutine[Any, Any, str | None]]) -> None:
        async def cell() -> str | None:
            loop, task, hooks = asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()
            try:
                return simulate(inner(), seed=0)
            except ValueError:
                return "failed"
            finally:
                assert asyncio.get_running_loop() is loop
                assert asyncio.current_task() is task
                assert sys.get_asyncgen_hooks() == hooks
                await asyncio.sleep(0)

        assert asyncio.run(cell()) in ("slept", "failed")

    def test_it_does_not_run_inside_itself(self) -> None:
        async def main() -> None:
            asyncio.get_running_loop().run_forever()

        with pytest.raises(RuntimeError, match="already running"):
            simulate(main(), seed=0)
