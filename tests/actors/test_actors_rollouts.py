"""The controller of the rollouts against engines and a learner in virtual time: who is asked what, and what is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from actors.fleet import FleetExhausted, State
from actors.ledger import Ledger, LedgerError
from actors.rollouts import Answered, Failed, Lost, Proved, Scored
from actors.types import Completion, Generation, PromptTask
from benchmarks.fleet_simulation import Simulation
from benchmarks.simulated_port import Due, Fate, Latencies
from rewards.outcome import Score
from rollouts_cases import answers_of, assert_suspects_were_alone, pump_until, simulation


# staleness


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("learn", [0.5, 20.0])
def test_nothing_is_older_than_k_and_k_is_used(staleness: int, learn: float) -> None:
    own = simulation(prompts=200, staleness=staleness, learn=learn)
    own.run()
    own.check()
    assert max(own.staleness) == staleness
    for _, _, task, version in own.port.given:
        assert version >= int(task.request.request_id[1:].split("-")[0]) - staleness


def test_without_staleness_a_step_is_asked_for_after_the_one_before_was_learned() -> None:
    own = simulation(staleness=0, generate=1.0)
    own.run()
    for _, _, task, version in own.port.given:
        assert task.request.request_id.startswith(f"s{version}-")
    assert own.staleness == {0: 48}


def test_with_staleness_the_learner_and_the_fleet_work_at_the_same_time() -> None:
    """Steps of 5 s to learn and 5 s to sample: one after the other takes twice as long."""
    latencies = Latencies(1.0, 0.01, 0.01)
    alone, ahead = (simulation([5.0] * 48, staleness=k, latencies=latencies, workers=1, capacity=8) for k in (0, 1))
    alone.run()
    ahead.run()
    assert 60 < alone.clock.now < 62 and 35 < ahead.clock.now < 37


# nothing is lost, nothing comes twice


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("staleness", [0, 2])
def test_every_prompt_is_trained_once_whatever_fails(seed: int, staleness: int) -> None:
    latencies = Latencies(5.0, 1.0, 0.1, 1.0, deaths_per_hour=240.0, hangs=0.3, failures=0.05, refusals=0.02)
    scale = ((20.0, 2), (45.0, 7), (90.0, 1), (130.0, 5))
    own = simulation(
        prompts=250, staleness=staleness, latencies=latencies, scale=scale, seed=seed, sigma=1.0, silence=20.0, longest=60.0
    )
    own.run()
    own.check()
    assert own.port.deaths > 3 and own.port.delays
    for reason in {reason for line in own.trained for reason in line["dropped"].values()}:
        assert reason in ("drawn to be refused", "drawn to fail", "killed", "its worker was silent"), reason
    assert_suspects_were_alone(own.port)
    assert not own.rollouts._tasks and not own.rollouts._groups and not own.rollouts._generations and not own.rollouts._came


def test_a_dead_workers_prompts_are_answered_by_others_with_the_same_task() -> None:
    own = simulation([5.0] * 48)
    own.port.at(8.5, lambda _: own.port.kill("w0"))
    own.run()
    own.check()
    held = {name: workers for name, workers in own.port.workers_of().items() if len(workers) > 1}
    assert held and all(workers[0] == "w0" and "w0" not in workers[1:] for workers in held.values())
    for name in held:
        tasks = [task for _, _, task, _ in own.port.given if task.request.request_id == name]
        assert all(task is tasks[0] for task in tasks)
    assert len(own.lengths) == 48 and own.trained[0]["sent_again"] == {name: 2 for name in held if name.startswith("s0-")}


def test_a_worker_that_hangs_is_found_by_its_silence() -> None:
    own = simulation([5.0] * 48, silence=30.0)
    own.port.at(8.5, lambda _: own.port.kill("w0", hangs=True))
    own.run()
    own.check()
    assert not any("dropped" in line for line in own.said) and any("w0 ended: no progress" in line for line in own.said)
    assert own.port.delays and all(30 < seconds < 60 for seconds in own.port.delays)


def test_a_failed_prompt_goes_to_another_try_and_its_worker_must_prove_itself_anew() -> None:
    failed: list[str] = []

    def once(task: PromptTask, worker: str) -> Fate:
        if task.request.seed == 3 and not failed:
            failed.append(worker)
            return "failed"
        return "answered"

    own = simulation([5.0] * 48, once)
    own.run()
    own.check()
    assert len(own.port.workers_of()["s0-p3"]) == 2 and own.trained[0]["sent_again"] == {"s0-p3": 2}
    assert own.port.deaths == 0 and len(own.fleet.workers) == 4  # and it serves on
    assert own.port.workers_of()["s5-p0"]


def test_a_prompt_that_is_deadly_is_dropped_with_its_reason_after_its_attempts() -> None:
    own = simulation([1.0] * 2 + [10.0] + [1.0] * 5, answers_of(2, by="deadly"), prompts=8, attempts=3)
    own.publish(0)
    pump_until(own, 10.0)
    own.admit(0)
    collected = own.rollouts.collect(0, 0, lambda scores: None)
    assert collected.dropped == ("killed",)
    assert [task.request.seed for task in collected.tasks] == [0, 1, 3, 4, 5, 6, 7]
    assert [group.generation.request_id for group in collected.groups] == [f"s0-p{place}" for place in (0, 1, 3, 4, 5, 6, 7)]
    assert len(set(own.port.workers_of()["s0-p2"])) == 3 == own.port.deaths
    assert own.rollouts.trained(0) == {
        "step": 0, "positions": [(0, 8)], "trained": 7, "dropped": {"s0-p2": "killed"}, "sent_again": {"s0-p2": 3}
    }
    assert "grpo: prompt s0-p2 is dropped: killed" in own.said


@pytest.mark.parametrize("long", [0, 1, 3])
def test_those_that_are_lost_with_a_deadly_prompt_are_not_dropped_with_it(long: int) -> None:
    """All its companions of the first losses are suspects too; with its last chance each is alone among those never lost."""
    seconds = [10.0 if place == long else 12.0 for place in range(12)]
    own = simulation(
        seconds, answers_of(long, by="deadly"), prompts=12, prompts_per_step=12, workers=2, capacity=5, attempts=3
    )
    own.run()
    own.check()
    assert own.trained[0]["dropped"] == {f"s0-p{long}": "killed"} and own.port.deaths == 3
    assert_suspects_were_alone(own.port)


def after_a_death(prompts: int, attempts: int) -> Simulation:
    """Eight prompts were sent to two workers, of which one has died; the other has been given what it may have."""
    own = simulation([10.0] * prompts, prompts=prompts, workers=2, capacity=8, prompts_per_step=8, attempts=attempts)
    own.publish(0)
    pump_until(own, 10.0)
    own.rollouts.ask(0, 8)
    own.rollouts.pump()
    own.port.kill("w0")
    pump_until(own, own.clock.now + 2.0)
    return own


def test_what_a_worker_held_goes_to_others_at_once_as_long_as_it_has_another_chance() -> None:
    own = after_a_death(prompts=8, attempts=3)
    assert len(own.fleet.holds("w1")) == 8 and own.ledger.waiting == 0


def test_last_chances_are_held_back_until_a_worker_has_no_other_lost_prompt() -> None:
    own = after_a_death(prompts=10, attempts=2)
    held = own.fleet.holds("w1")
    assert len(held) == 5 and own.ledger.waiting == 3  # its own four, and one of the four that w0 was lost with
    own.rollouts.ask(0, 2)
    own.rollouts.pump()
    assert own.fleet.holds("w1") - held == {"s0-p8", "s0-p9"} and own.ledger.waiting == 3  # nobody else waits for them
    assert len(own.rollouts.collect(0, 0, lambda scores: None).groups) == 10
    assert sorted(len(workers) for workers in own.port.workers_of().values()) == [1] * 6 + [2] * 4
    assert_suspects_were_alone(own.port)


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_refused_prompt_is_dropped_after_its_attempts_and_its_workers_serve_on(attempts: int) -> None:
    own = simulation([5.0] * 48, answers_of(1, 9, by="refused"), attempts=attempts)
    own.run()
    own.check()
    assert [line["dropped"] for line in own.trained[:3]] == [
        {"s0-p1": "drawn to be refused"}, {"s1-p1": "drawn to be refused"}, {}
    ]
    sendings = {name: len(workers) for name, workers in own.port.workers_of().items()}
    assert sendings == dict.fromkeys(sendings, 1) | {"s0-p1": attempts, "s1-p1": attempts}
    assert len(own.port.proofs) == 4


def test_what_one_worker_refuses_another_answers_and_who_refuses_all_is_replaced() -> None:
    own = simulation([5.0] * 48, lambda task, worker: "refused" if worker == "w0" else "answered")
    own.run()
    own.check()
    assert len(own.lengths) == 48 and "w4" in own.port.proofs
    ended = [said for said in own.said if "ended" in said]
    assert ended == ["grpo: rollout worker w0 ended: 3 requests refused in a row, the last: drawn to be refused"]


def test_long_prompts_are_not_left_out() -> None:
    latencies = Latencies(5.0, 1.0, deaths_per_hour=120.0)
    own = simulation(prompts=400, staleness=4, learn=0.5, attempts=100, latencies=latencies)
    own.run()
    own.check()
    assert sorted(seconds for _, seconds in own.lengths) == sorted(own.seconds) and own.port.deaths
    for step, line in enumerate(own.trained):  # and each is in its own step, not in a later one
        assert line["positions"] == [(8 * step, 8)] and line["trained"] == 8


def test_what_a_lost_worker_still_says_is_nobodys() -> None:
    own = simulation([20.0] * 8, prompts=8, workers=2, capacity=4)
    own.publish(0)
    own.admit(0)
    own.rollouts.pump()
    name = next(iter(own.port.workers_of()))
    (worker,) = own.port.workers_of()[name]
    late = Generation(name, (), (Completion((1,), (0.0,), "late", "stop"),), 0, worker, 999.0)
    own.port.kill(worker)
    own.port.tell(Lost(worker, "again"), Answered(worker, name, late), Failed(worker, name, "late"), Scored(name, ()))
    collected = own.rollouts.collect(0, 0, lambda scores: None)
    assert [group.generation.seconds for group in collected.groups] == [20.0] * 8 and not collected.dropped
    assert {entry.sent for entry in own.ledger.entries(0)} <= {1, 2}


# the fleet changes


def test_a_joiner_is_given_work_as_soon_as_it_has_proved() -> None:
    own = simulation([5.0] * 48, workers=1, scale=((20.0, 3),), prompts_per_step=24)
    own.run()
    own.check()
    for worker in ("w1", "w2"):
        first = min(time for time, name, _, _ in own.port.given if name == worker)
        assert first == own.port.proofs[worker] > 20


def test_a_draining_worker_delivers_what_it_holds_and_is_given_nothing() -> None:
    own = simulation([5.0] * 24, workers=2, prompts=24, prompts_per_step=24)
    own.publish(0)
    pump_until(own, 10.0)
    own.admit(0)
    own.rollouts.pump()
    own.fleet.scale(1)
    own.rollouts.pump()
    (leaving,) = (worker for worker in own.fleet.workers if worker.state is State.DRAINING)
    name, held, given = leaving.name, set(leaving.holds), len(own.port.given)
    assert held
    collected = own.rollouts.collect(0, 0, lambda scores: None)
    assert all(worker != name for _, worker, _, _ in own.port.given[given:])
    by = {group.generation.request_id: group.generation.worker for group in collected.groups}
    assert all(by[request] == name for request in held) and len(by) == 24
    assert all(len(workers) == 1 for workers in own.port.workers_of().values())
    assert [worker.name for worker in own.fleet.workers] == [one for one in ("w0", "w1") if one != name]
    assert own.said[-1] == f"grpo: rollout worker {name} ended: the fleet is smaller now" and own.port.deaths == 0


def test_publish_returns_at_the_first_proof_and_the_others_follow() -> None:
    own = simulation()
    own.publish(0)
    assert len(own.rollouts.gaps) == 1 == own.fleet.count(State.SERVING)
    pump_until(own, 20.0)
    assert own.fleet.count(State.SERVING) == 4 == len(own.rollouts.gaps)
    own.publish(1)
    assert len(own.rollouts.gaps) == 1 == own.fleet.count(State.SERVING) and own.fleet.count(State.STALE) == 3


def test_workers_that_die_as_fast_as_they_start_end_the_run() -> None:
    own = simulation([1.0] * 48, lambda task, worker: "deadly", deaths=2, attempts=1000)
    with pytest.raises(FleetExhausted, match=r"3 rollout workers died within 3600 s, 2 may(.|\n)*killed"):
        own.run()


# steps


def test_further_prompts_of_a_step_are_the_next_of_the_schedule() -> None:
    own = simulation([1.0] * 48, staleness=1)
    own.publish(0)
    own.admit(0)
    assert len(own.rollouts.collect(0, 0, lambda scores: None).tasks) == 8
    own.rollouts.ask(0, 3)
    seen: list[Score] = []
    further = own.rollouts.collect(0, 8, seen.extend)
    assert [(task.request.request_id, task.request.seed) for task in further.tasks] == [
        ("s0-p8", 16), ("s0-p9", 17), ("s0-p10", 18)
    ]
    assert own.rollouts.asked(0) == 11 and own.rollouts.trained(0)["positions"] == [(0, 8), (16, 3)]
    assert [task.request.seed for task in own.rollouts.collect(1, 0, seen.extend).tasks] == list(range(8, 16))


def test_a_resumed_run_asks_for_the_same_prompts_and_skips_none() -> None:
    whole, before = (simulation(staleness=2, latencies=Latencies(5.0, 1.0, deaths_per_hour=200.0)) for _ in range(2))
    whole.run()
    before.run(steps=3)
    state = json.loads(json.dumps(before.ledger.state()))
    assert [int(step) for step in state["steps"]] == [3, 4]
    after = simulation(staleness=2, state=state)
    after.run(first=3)
    after.check(first=24)
    asked = {task.request.request_id: task.request.seed for _, _, task, _ in whole.port.given}
    again = {task.request.request_id: task.request.seed for _, _, task, _ in after.port.given}
    assert again == {name: position for name, position in asked.items() if position >= 24}
    both = [line["positions"] for line in before.trained + after.trained]
    assert both == [line["positions"] for line in whole.trained]


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_was_asked_for_further_ahead_than_a_resumed_run_may_keeps_its_prompts_and_waits(staleness: int) -> None:
    before = simulation(staleness=3)
    before.run(steps=2)
    state = json.loads(json.dumps(before.ledger.state()))
    assert state == {"next": 40, "steps": {"2": [[16, 8]], "3": [[24, 8]], "4": [[32, 8]]}}
    after = simulation(staleness=staleness, state=state)
    after.run(first=2)
    after.check(first=16)  # none skipped, none twice, none older than the K of now
    assert max(after.staleness) == staleness
    assert [line["positions"] for line in after.trained] == [[(8 * step, 8)] for step in range(2, 6)]


def test_steps_that_were_asked_for_keep_their_prompts_when_a_resumed_run_asks_for_another_number() -> None:
    before = simulation(staleness=2)
    before.run(steps=2)
    state = json.loads(json.dumps(before.ledger.state()))
    assert state == {"next": 32, "steps": {"2": [[16, 8]], "3": [[24, 8]]}}
    after = simulation(staleness=2, state=state)
    after.publish(2)
    for step in range(2, 6):
        after.rollouts.admit(step, min(step + 2, 5), 4)
        after.rollouts.collect(step, 0, lambda scores: None)
        after.trained.append(after.rollouts.trained(step))
    assert [line["positions"] for line in after.trained] == [[(16, 8)], [(24, 8)], [(32, 4)], [(36, 4)]]


def test_steps_behind_an_earlier_end_are_not_answered_and_still_there_for_a_later_one() -> None:
    before = simulation(staleness=2)
    before.run(steps=2)
    state = json.loads(json.dumps(before.ledger.state()))
    after = simulation(staleness=2, state=state)
    after.publish(2)
    after.rollouts.admit(2, min(2 + 2, 2), 8)  # the run ends with step 2 now
    after.rollouts.collect(2, 0, lambda scores: None)
    pump_until(after, after.clock.now + 30.0)
    assert {task.request.request_id.split("-")[0] for _, _, task, _ in after.port.given} == {"s2"}
    after.rollouts.trained(2)
    assert after.ledger.state() == {"next": 32, "steps": {"3": [[24, 8]]}}


def test_the_fleet_works_while_the_learner_does() -> None:
    own = simulation([1.0] * 48, staleness=1)
    own.publish(0)
    own.admit(0)
    own.rollouts.collect(0, 0, lambda scores: None)
    assert own.rollouts.meanwhile(own.port.learn(30.0)) == [{}]
    assert own.ledger.complete(1)
    begun = own.clock.now
    collected = own.rollouts.collect(1, 0, lambda scores: None)
    assert own.clock.now == begun and collected.scoring_seconds == 0.0  # nothing was left to wait for


def test_what_the_learner_fails_with_ends_the_wait() -> None:
    class Failing(Due):
        def done(self) -> bool:
            if super().done():
                raise RuntimeError("rank 1 died")
            return False

    own = simulation()
    with pytest.raises(RuntimeError, match="rank 1 died"):
        own.rollouts.meanwhile(Failing(own.clock, 12.5))
    assert 12.5 <= own.clock.now < 14


# the learner is lost


@pytest.mark.parametrize("after", [0.0, 6.0, 19.0, 20.05])
def test_what_was_asked_for_before_a_withdrawal_is_asked_again_and_nothing_old_is_used(after: float) -> None:
    """At once; while it runs; before the answers, which come with the next update under way; before the scores."""
    own = simulation([20.0] * 16, prompts=16, workers=2, capacity=8, staleness=1)
    own.publish(5)
    own.admit(0)
    before = own.clock.now
    state = own.ledger.state()
    while own.clock.now < before + after:
        own.rollouts.pump()
    workers = [worker.name for worker in own.fleet.workers]
    own.port.withdraw()
    own.port.ledger = Ledger(3, json.loads(json.dumps(state)))
    own.rollouts.withdraw(own.port.ledger)
    pump_until(own, own.clock.now + 3.0)
    assert own.fleet.count(State.SERVING) == 0  # the next version is not there yet
    given, last = len(own.port.given), own.clock.now
    own.publish(6)
    for step in (0, 1):
        collected = own.rollouts.collect(step, 0, lambda scores: None)
        assert [task.request.seed for task in collected.tasks] == list(range(8 * step, 8 * step + 8))
        assert {group.generation.version for group in collected.groups} == {6} and not collected.dropped
        assert own.rollouts.trained(step)["sent_again"] == {}
    assert all(time > last for time, _, _, _ in own.port.given[given:]) and len(own.port.given) == given + 16
    assert [worker.name for worker in own.fleet.workers] == workers and own.port.deaths == 0


def test_the_proof_of_a_dead_worker_is_nobodys() -> None:
    own = simulation(latencies=Latencies(5.0, 1000.0))
    own.fleet.publish(0)
    own.port.offer(0)
    pump_until(own, 7.0)
    own.port.tell(Lost("w0", "died"), Proved("w0", 0, 0.0))
    own.rollouts.pump()
    assert not own.rollouts.gaps and own.fleet.count(State.SERVING) == 0


def test_the_proof_of_an_older_version_or_of_a_worker_that_leaves_is_no_gap() -> None:
    own = simulation([20.0] * 8, prompts=8, workers=2, capacity=4)
    own.publish(0)
    pump_until(own, 10.0)
    own.admit(0)
    own.rollouts.pump()
    own.fleet.scale(1)
    own.rollouts.pump()
    (leaving,) = (worker.name for worker in own.fleet.workers if worker.state is State.DRAINING)
    (stays,) = (worker.name for worker in own.fleet.workers if worker.name != leaving)
    own.rollouts.gaps = {}
    own.port.tell(Proved(leaving, 0, 0.5))
    own.rollouts.pump()
    assert own.rollouts.gaps == {}
    own.fleet.publish(1)
    own.port.tell(Proved(stays, 0, 0.5))
    own.rollouts.pump()
    assert 0.5 not in own.rollouts.gaps.values()
    own.publish(2)
    assert own.rollouts.gaps == {stays: 0.0}


def test_workers_the_cluster_has_no_room_for_are_waited_for_while_others_serve() -> None:
    own = simulation([5.0] * 48, workers=1, scale=((10.0, 3),), start_silence=20.0)
    own.port.at(9.0, lambda _: setattr(own.port, "_latencies", Latencies(5.0, 1.0, place=40.0)))
    own.run()
    own.check()
    assert own.port.deaths == 0 and not any("ended" in said for said in own.said)
    assert set(own.port.proofs) == {"w0", "w1", "w2"}
    assert min(own.port.proofs[name] for name in ("w1", "w2")) > 10 + 0.8 * 40


def test_a_worker_that_hangs_while_it_starts_is_replaced() -> None:
    own = simulation([5.0] * 48)
    own.port.at(2.0, lambda _: own.port.kill("w0", hangs=True))
    own.publish(0)
    pump_until(own, 80.0)
    assert "grpo: rollout worker w0 ended: no progress for 60 s while joining" in own.said
    assert own.fleet.states() == {"serving": 4} and set(own.port.proofs) == {"w1", "w2", "w3", "w4"}


def test_a_cluster_without_room_for_anybody_ends_the_run() -> None:
    own = simulation(latencies=Latencies(5.0, 1.0, place=1000.0))
    with pytest.raises(FleetExhausted, match="the cluster has had no room for a rollout worker"):
        own.run()
    assert 60 <= own.clock.now < 62 and own.port.deaths == 0


def test_collect_shows_scores_that_came_before_it() -> None:
    own = simulation([1.0] * 17 + [5.0], prompts=16, staleness=1)
    own.publish(0)
    own.admit(0)
    own.rollouts.collect(0, 0, lambda scores: None)
    assert own.rollouts.meanwhile(own.port.learn(30.0)) == [{}]
    seen: list[Score] = []
    own.rollouts.collect(1, 0, seen.extend)
    assert len(seen) == 8
    own.rollouts.ask(1, 2)
    own.rollouts.meanwhile(own.port.learn(2.0))  # one of the further two has come, with its score
    own.rollouts.collect(1, 8, seen.extend)
    assert len(seen) == 10


def test_a_step_that_has_asked_for_nothing_is_not_collected() -> None:
    own = simulation()
    with pytest.raises(LedgerError, match="step 3 has not asked for prompts"):
        own.rollouts.collect(3, 0, lambda scores: None)
    assert own.clock.now == 0


def test_collect_shows_the_scores_of_its_step_only() -> None:
    own = simulation([20.0] + [1.0] * 15, prompts=16, staleness=1)
    own.publish(0)
    own.admit(0)
    seen: list[Score] = []
    own.rollouts.collect(0, 0, seen.extend)
    assert len(seen) == 8


def test_collect_shows_the_scores_from_its_place_on_only() -> None:
    own = simulation([1.0] * 6 + [3.0] * 4, prompts=10)
    own.publish(0)
    own.rollouts.ask(0, 8)
    own.rollouts.ask(0, 2)
    seen: list[Score] = []
    assert len(own.rollouts.collect(0, 8, seen.extend).groups) == 2 == len(seen)


def test_who_gave_up_collecting_is_not_called_again() -> None:
    def refuses(scores: Sequence[Score]) -> None:
        raise RuntimeError("too many failed")

    own = simulation([1.0, 2.0] * 4, prompts=8)
    own.publish(0)
    own.admit(0)
    with pytest.raises(RuntimeError, match="too many failed"):
        own.rollouts.collect(0, 0, refuses)
    own.rollouts.meanwhile(own.port.learn(30.0))
