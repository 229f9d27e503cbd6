"""Waits end on silence and say who waited for what."""

import asyncio
import pickle
import time

import pytest

from actors.deadlines import DeadlineExceeded, RayWait, Silence, wait_with_progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_silence_counts_from_the_last_change():
    clock = Clock()
    silence = Silence(10, clock)
    for clock.now, value in [(6, 1), (12, 2), (18, 2)]:
        silence.observe(value)
    assert silence.seconds == 6 and not silence.exceeded
    clock.now = 22
    assert silence.exceeded


def test_a_slow_task_that_progresses_is_not_killed():
    async def slow():
        for _ in range(8):
            await asyncio.sleep(0.05)
            steps.append(1)
        return "done"

    steps: list[int] = []
    limits = {"silence_seconds": 0.2, "progress": lambda: len(steps), "poll_seconds": 0.02}
    assert asyncio.run(wait_with_progress(slow(), who="a", what="b", **limits)) == "done"


def test_a_silent_task_is_cancelled_and_named():
    async def hang():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def wait():
        try:
            limits = {"silence_seconds": 0.1, "progress": lambda: 3, "poll_seconds": 0.02}
            await wait_with_progress(hang(), who="trainer", what="group 7 of w0", **limits)
        finally:
            await asyncio.sleep(0)

    cancelled: list[bool] = []
    with pytest.raises(DeadlineExceeded, match="trainer waited for group 7 of w0: no progress for 0.1 s; last value 3"):
        asyncio.run(wait())
    assert cancelled == [True]


def test_errors_of_the_awaited_come_through():
    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(wait_with_progress(fail(), who="a", what="b", silence_seconds=1))


def test_the_error_travels_between_processes():
    assert str(pickle.loads(pickle.dumps(DeadlineExceeded("a waited for b")))) == "a waited for b"


@pytest.mark.engine
def test_ray_wait_collects_by_label_and_names_what_is_missing(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=0.1)(lambda seconds: time.sleep(seconds) or seconds)
        wait = RayWait("trainer", poll_seconds=0.05)
        arrived = []
        refs = {"a": task.remote(0.3), "b": task.remote(0)}
        results = wait.all(refs, "rewards", 60, arrived=lambda label, _: arrived.append(label))
        assert results == {"a": 0.3, "b": 0} and arrived == ["b", "a"]
        assert wait.one(task.remote(0), "one", 60) == 0
        with pytest.raises(DeadlineExceeded, match=r"trainer waited for rewards \(1 missing: slow\)"):
            wait.all({"slow": task.remote(600), "b": task.remote(0)}, "rewards", 2)
    finally:
        ray.shutdown()
