"""Who is killed, whether the aim was hit, and when the run had recovered: from the trainer's two files alone."""

from __future__ import annotations

from benchmarks.victims import Kill, aim_at, hit, recovered


def worker(name: str, state: str = "serving", holds: int = 0, bringing: int | None = None, pid: int | None = 7) -> dict:
    ids = {"actor": f"a-{name}", "pid": pid, "node": "n"}
    return {"name": name, "state": state, "holds": holds, "bringing": bringing, **ids}


def seen(*workers: dict, doing: str = "sampling", groups: int = 0, step: int = 3) -> dict:
    ids = {"actor": "x", "pid": 9, "node": "n"}
    return {
        "doing": doing, "step": step, "workers": workers, "learners": [{"name": "rank 0", **ids}, {"name": "rank 1", **ids}],
        "scorers": [{"name": "r0", "groups": groups, **ids}],
    }


def line(name: str, before: str | None, after: str, time: float = 101.0, kind: str = "worker", **more: object) -> dict:
    own = {"time": time, "kind": kind, "name": name, "actor": f"a-{name}", "before": before, "after": after}
    return own | {"holds": 0, "bringing": None} | more


def killed(aim: str, kind: str = "worker", name: str = "w0") -> Kill:
    return Kill(aim, kind, name, f"a-{name}", 7, 100.0, 3, "sampling", {})


def test_an_aim_wants_the_state_and_a_known_process() -> None:
    now = seen(worker("w0", holds=2), worker("w1"), worker("w2", pid=None), worker("w3", "joining"), groups=1)
    assert aim_at("worker_generating", now)["name"] == "w0"
    assert aim_at("worker_idle", now)["name"] == "w1"
    assert aim_at("worker_joining", now)["name"] == "w3"
    assert aim_at("worker_updating", now) is None
    assert aim_at("worker_updating", seen(worker("w0", "stale", bringing=4)))["name"] == "w0"
    assert aim_at("worker_updating", seen(worker("w0", "stale", bringing=0), step=0)) is None, "it begins, and has no other"
    assert aim_at("reward_scoring", now)["name"] == "r0" and aim_at("reward_scoring", seen()) is None
    assert aim_at("learner_learning", now) is None
    assert aim_at("learner_learning", seen(doing="learning"))["name"] == "rank 1"
    assert aim_at("learner_learning", seen(doing="learning"), lambda own: own["name"] == "rank 0")["name"] == "rank 0"


def test_the_aim_was_hit_when_that_very_actor_was_lost_in_that_state() -> None:
    own = killed("worker_generating")
    assert hit(own, [line("w0", "serving", "dead", holds=2)])
    assert not hit(own, [line("w0", "serving", "dead", holds=0)]), "it had nothing to do any more"
    assert not hit(own, [line("w0", "stale", "dead", bringing=4)])
    assert not hit(own, [line("w1", "serving", "dead", holds=2)]), "another one was lost"
    assert not hit(own, [line("w0", "serving", "draining", holds=2)]), "it lives"
    assert hit(killed("learner_learning", "learner", "rank 0"), [line("rank 0", "learning", "lost", kind="learner")])
    assert not hit(killed("learner_learning", "learner", "rank 0"), [line("rank 0", "publishing", "lost", kind="learner")])


def test_a_run_has_recovered_when_one_that_began_after_the_kill_works() -> None:
    told = [
        line("w1", None, "joining", 99.0), line("w1", "joining", "stale", 103.0), line("w1", "stale", "serving", 104.0),
        line("w0", "serving", "dead", 101.0, holds=2), line("w2", None, "joining", 101.1),
        line("w2", "joining", "stale", 120.0),
    ]
    assert recovered(killed("worker_generating"), told) is None, "w1 was there before"
    assert recovered(killed("worker_generating"), [*told, line("w2", "stale", "serving", 121.5)]) == 21.5
    ranks = [
        line("rank 1", "starting", "ready", 130.0, "learner"), line("rank 0", None, "starting", 102.0, "learner"),
        line("rank 0", "starting", "ready", 131.0, "learner"),
    ]
    assert recovered(killed("learner_learning", "learner", "rank 0"), ranks) == 31.0
