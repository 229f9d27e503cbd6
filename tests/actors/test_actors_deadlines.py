"""Waits end on silence and say who waited for what."""

import pickle
import time

import pytest

from actors.deadlines import DeadlineExceeded, RayWait, Silence


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
        steps = iter(range(1000))
        moving = task.remote(3)  # longer than the limit, and progressing all the time
        assert wait.one(moving, "one that moves", 1, progress=lambda: next(steps)) == 3
    finally:
        ray.shutdown()
