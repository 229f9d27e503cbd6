"""Waits end on silence and say who waited for what."""

import pickle
import sys
import time

import pytest

from actors.deadlines import Calls, DeadlineExceeded, RayWait, Silence


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


class Remote:
    """Stands in for Ray: what is there is in `there`, in any order; an exception in it is what the call failed with."""

    def __init__(self):
        self.there = {}
        self.waits = []

    def wait(self, refs, num_returns, timeout):
        self.waits.append((list(refs), num_returns, timeout))
        ready = [ref for ref in self.there if ref in refs]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, refs):
        for result in (self.there[ref] for ref in refs):  # a KeyError: it would have had to wait
            if isinstance(result, Exception):
                raise result
        return [self.there[ref] for ref in refs]


@pytest.fixture
def remote(monkeypatch):
    remote = Remote()
    monkeypatch.setitem(sys.modules, "ray", remote)
    return remote


def calls(clock, *refs):
    return Calls(refs, "the trainer", "an optimizer step", 10, clock)


def test_calls_are_done_when_all_are_and_their_results_come_in_their_order(remote):
    own = calls(Clock(), "a", "b", "c")
    assert not own.done() and own.missing == ("a", "b", "c")
    remote.there["c"] = 3
    assert not own.done() and own.missing == ("a", "b")
    remote.there.update(b=2, a=1)
    assert own.done() and own.missing == () and own.refs == ("a", "b", "c")
    assert own.results() == [1, 2, 3]


def test_calls_are_looked_at_without_waiting_and_only_those_that_are_missing(remote):
    own = calls(Clock(), "a", "b")
    remote.there["a"] = 1
    own.done()
    remote.there["b"] = 2
    assert own.done() and own.done()
    assert remote.waits == [(["a", "b"], 2, 0), (["b"], 1, 0)]


def test_no_calls_are_done(remote):
    own = calls(Clock())
    assert own.done() and own.results() == [] and remote.waits == []


def test_one_failed_call_fails_them_all_though_others_are_missing(remote):
    own = calls(Clock(), "a", "b", "c")
    remote.there.update(c=3, b=RuntimeError("rank 1: out of memory"))
    for _ in range(2):  # and goes on failing
        with pytest.raises(RuntimeError, match="^rank 1: out of memory$"):
            own.done()


def test_calls_of_which_none_ends_for_too_long_say_who_waited_for_what(remote):
    clock = Clock()
    own = calls(clock, "a", "b", "c")
    assert not own.done()
    clock.now, remote.there["b"] = 9, 2
    assert not own.done()  # one has ended: the silence starts anew
    clock.now = 18.5
    assert not own.done()
    clock.now = 19
    with pytest.raises(DeadlineExceeded) as raised:
        own.done()
    said = "the trainer waited for an optimizer step (2 of 3 missing): no progress for 10 s; last value 2"
    assert str(raised.value) == said and own.missing == ("a", "c")


def test_calls_that_are_done_cannot_be_late(remote):
    clock = Clock()
    own = calls(clock, "a")
    own.done()
    clock.now, remote.there["a"] = 1000, 1
    assert own.done()
    clock.now = 2000
    assert own.done() and own.results() == [1]


def test_a_failure_is_told_rather_than_the_silence(remote):
    clock = Clock()
    own = calls(clock, "a", "b")
    own.done()
    clock.now, remote.there["a"] = 1000, RuntimeError("rank 0 died")
    with pytest.raises(RuntimeError, match="rank 0 died"):
        own.done()


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
