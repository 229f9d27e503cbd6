"""What is said of workers that the cluster has no room for."""

from __future__ import annotations

from actors.worker_rooms import no_room


def test_it_is_told_what_was_asked_for_and_what_is_free() -> None:
    assert no_room(["w3", "w4"], {"CPU": 2.0, "GPU": 0.5}, {"CPU": 7.0, "memory": 3e9}) == (
        "grpo: no room in the cluster yet for rollout worker w3, w4: each asks for 2 CPU, 0.5 GPU on one node; free in all "
        "nodes together: 7 CPU, 0 GPU. It starts when there is room; see `ray status`"
    )


def test_many_workers_are_counted() -> None:
    told = no_room([f"w{index}" for index in range(20)], {"CPU": 1}, {})
    assert "rollout worker w0, w1, w2, w3, w4, w5, w6, w7 and 12 more: each asks for 1 CPU" in told
