"""What the ledger remembers when the learner goes back to a checkpoint: how often each prompt was sent."""

from __future__ import annotations

import json

from actors.ledger import Ledger


def send(ledger: Ledger, count: int, answer: bool = True) -> list[str]:
    """The next `count` prompts, sent."""
    names = [ledger.take_pending() for _ in range(count)]
    for name in names:
        ledger.sent(name, "w0")
        if answer:
            ledger.answered(name)
    return names


def test_what_was_trained_in_flight_or_pending_when_the_learner_died_is_told_as_sent_again() -> None:
    ledger = Ledger(3)
    ledger.ask(0, 2)
    send(ledger, 2)
    assert ledger.train(0)["sent_again"] == {}
    ledger.ask(1, 2)
    state = json.loads(json.dumps(ledger.state()))
    send(ledger, 1)
    send(ledger, 1, answer=False)
    assert ledger.lost(["s1-p1"], "w0 died") == [] and send(ledger, 1) == ["s1-p1"]
    ledger.train(1)
    ledger.ask(2, 3)
    send(ledger, 2, answer=False)  # the third waits
    again = ledger.rewound(state)
    assert again.state() == state and again.waiting == 2 and again.next == 2 + 2
    send(again, 2)
    assert again.train(1)["sent_again"] == {"s1-p0": 2, "s1-p1": 3}
    again.ask(2, 3)
    send(again, 3)
    assert again.train(2)["sent_again"] == {"s2-p0": 2, "s2-p1": 2}


def test_every_further_loss_of_the_learner_is_counted_also_without_a_checkpoint() -> None:
    ledger = Ledger(3)
    for _ in range(3):
        ledger.ask(0, 2)
        send(ledger, 2)
        ledger.train(0)
        ledger = ledger.rewound(None)
    ledger = ledger.rewound(None)  # it dies before anything is asked
    ledger.ask(0, 2)
    send(ledger, 2)
    assert ledger.train(0)["sent_again"] == {"s0-p0": 4, "s0-p1": 4}


def test_what_a_worker_was_lost_to_before_is_not_held_against_a_prompt() -> None:
    ledger = Ledger(2)
    ledger.ask(0, 1)
    state = ledger.state()
    send(ledger, 1, answer=False)
    assert ledger.lost(["s0-p0"], "w0 died") == []
    again = ledger.rewound(state)
    assert not again.was_lost("s0-p0")
    send(again, 1, answer=False)
    assert again.lost(["s0-p0"], "w1 died") == []
