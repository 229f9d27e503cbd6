"""What tests of `ladder reward check` share: a reward without a process, and the groups of a run."""

import json

from actors.record import trace
from actors.types import Completion, Generation, Group
from data.types import Example, Prompt
from rewards.contract import CustomReward
from rewards.outcome import Score
from rewards.worker import Failure


class InProcess:
    """Stands for a RewardProcess: the same values and failures, from a function of this process."""

    pid = None

    def helpers(self) -> int:
        return 0

    def __init__(self, function, batched: bool = False) -> None:
        self._reward = CustomReward("mine", function, {}, batched)

    def custom(self, place, row, texts):
        def failure(error):
            return Failure("error", f"row {row.id}: reward 'mine': {type(error).__name__}: {error}")

        try:
            if self._reward.batched:
                items = self._reward.group_components(self._reward.call(list(texts), row), len(texts))
                return [failure(item) if isinstance(item, Exception) else item for item in items]
        except Exception as error:
            return [failure(error)] * len(texts)
        results = []
        for text in texts:
            try:
                results.append(self._reward.components(self._reward.call(text, row)))
            except Exception as error:
                results.append(failure(error))
        return results

    def close(self):
        pass


def group(step_row: Example, truncated: int, *completions: tuple[str, float]) -> Group:
    ended = {text: Completion((1, 2), (-0.5, -0.5), text, "stop") for text, _ in completions}
    made = [(ended[text], Score("ok", {"answer": total}, total)) for text, total in completions]
    made += [(Completion((1,), (-0.5,), "<think>and so", "length"), Score("truncated"))] * truncated
    generation = Generation("r", (1,), tuple(completion for completion, _ in made), 0, "w0", 0.1)
    return Group(Prompt(step_row, "think", ()), generation, tuple(score for _, score in made))


def line(own: Group, row=None) -> str:
    none = [0.0] * len(own.scores)
    return json.dumps(trace(0, own, none, none, row)) + "\n"


def example(question_type: str, answer: str | None, **more) -> Example:
    return Example("train/spatial/1", 1, "single_image", "How far?", question_type, ("/a.png",), answer=answer, **more)
