"""What the controller of the rollouts says of its workers."""

from __future__ import annotations

from rollouts_cases import pump_until, simulation


def test_who_starts_in_place_of_a_dead_worker_is_told_once() -> None:
    own = simulation([5.0] * 48)
    own.port.at(8.5, lambda _: own.port.kill("w1"))
    own.run()
    of_death = [said for said in own.said if "w1" in said or "in place of" in said]
    assert of_death == [
        "grpo: rollout worker w1 is ready",
        "grpo: rollout worker w1 ended: killed",
        "grpo: rollout worker w4 starts in place of w1",
    ]


def test_who_starts_or_leaves_because_the_fleet_is_scaled_takes_nobodys_place() -> None:
    own = simulation()
    own.publish(0)
    for size in (2, 5):
        own.fleet.scale(size)
        pump_until(own, own.clock.now + 60.0)
    assert sum("the fleet is smaller now" in said for said in own.said) == 2 and len(own.fleet.workers) == 5
    assert not any("in place of" in said for said in own.said)
