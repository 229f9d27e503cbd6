"""`ladder reward new`: a reward to start from, and a test of it that passes.

What holds: nothing that exists is overwritten; what is written loads, keeps the contract and passes its test.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from launch.reward_findings import RewardRefused
from rewards.errors import RewardContractError
from rewards.loading import check_names
from rewards.settings import RewardSpec

_REWARD = '''"""A reward of one's own: `NAME`. How such functions work: docs/rewards.md.

USES
"""

from __future__ import annotations

from rewards.extraction import extract_answer
from rewards.rows import RewardRow


def NAME(completion_text: str, example: RewardRow, *, wrong: float = 0.0) -> float | dict[str, float]:
    """1.0 when the answer is the row's, letter for letter, else `wrong`; {} (does not apply) on rows that ask for boxes.

    completion_text: what the policy wrote, without its end token. It may be anything, the empty text too; a completion
        that was cut off at the length limit does not come here.
    example: the row: id, question, question_type, options, answer, target_boxes, processed_size, media, metadata.
    wrong: a parameter, set by `params` in the configuration.

    Return a finite float, or a dict of them to report several components (`NAME/key`); for one row always the
    same components. The same text on the same row has the same value, whatever came before it and in any process.
    """
    if example.answer is None:
        return {}
    answer = extract_answer(completion_text)  # the content of the last complete <answer>…</answer>; None without one
    return 1.0 if answer == example.answer else wrong
'''

_USES = (
    ("ladder reward check FILE:NAME", "does it keep the contract?"),
    ("python -m pytest TEST", "does it do what it should?"),
    ("reward: {custom: [FILE:NAME]}", "in a configuration; with weight and params:"),
    ("reward: {custom: [{source: FILE:NAME, weight: 0.5, params: {wrong: -0.2}}]}", ""),
)

_TEST = '''"""What the reward of FILE is worth; `ladder reward check` tries what holds for every reward."""

import asyncio
from pathlib import Path

import pytest

from rewards.loading import load_reward
from rewards.rows import RewardRow
from rewards.settings import RewardSpec

# params as in the configuration; batched=True for a reward that takes the texts of a group at once
REWARD = load_reward(RewardSpec(f"{Path(__file__).with_name('FILE')}:NAME", params={}, batched=False))
DISTANCE = RewardRow("row/1", "How far is the chair from the lamp (in meters)?", "absolute distance", None, "2.4")
CHAIR = ("chair", (4.0, 4.0, 40.0, 40.0))
BOXES = RewardRow("row/2", "Where is the chair?", "object localization", None, None, (CHAIR,), (84, 56))


def components(text, row):
    """What the reward, plain or async, reports for one text; {} where it does not apply."""
    result = REWARD.call([text] if REWARD.batched else text, row)
    if REWARD.is_async:
        result = asyncio.run(result)
    return REWARD.group_components(result, 1)[0] if REWARD.batched else REWARD.components(result)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>Two and a bit.</think><answer>2.4</answer>", 1.0),
        ("<think>Far.</think><answer>9</answer>", 0.0),
        ("2.4", 0.0),
        ("", 0.0),
    ],
)
def test_a_completion_has_the_value_it_should(text, expected):
    assert components(text, DISTANCE) == {"NAME": expected}


def test_it_does_not_apply_to_rows_that_ask_for_boxes():
    assert components("<answer>[]</answer>", BOXES) == {}
'''


def starter_files(path: Path, name: str) -> dict[Path, str]:
    """The two files and their texts. Pure."""
    test = path.with_name(f"test_{path.name}")
    replaced = {"FILE": path.name, "TEST": test.name, "NAME": name}

    def filled(text: str) -> str:
        return re.sub("|".join(replaced), lambda word: replaced[word[0]], text)

    uses = [(filled(use), meaning) for use, meaning in _USES]
    width = max(len(use) for use, meaning in uses if meaning)
    replaced["USES"] = "\n".join(f"    {use:{width}}  {meaning}".rstrip() for use, meaning in uses)
    return {path: filled(_REWARD), test: filled(_TEST)}


def write_starter(path: Path, name: str | None = None) -> list[Path]:
    """Writes the reward `name` (default: the name of the file) and its test. RewardRefused; nothing is then written."""
    if path.suffix != ".py":
        raise RewardRefused(f"{path}: a reward is written into a Python file: give a name that ends in .py")
    chosen = path.stem if name is None else name
    if not chosen.isidentifier() or keyword.iskeyword(chosen):
        raise RewardRefused(f"{chosen!r} is no name for a function: choose one with --name")
    try:
        check_names([RewardSpec(f"{path}:{chosen}")])
    except RewardContractError:
        raise RewardRefused(f"{chosen!r} is the name of a built-in reward: choose another with --name") from None
    if not path.parent.is_dir():
        raise RewardRefused(f"{path.parent} is no folder: make it first")
    files = starter_files(path, chosen)
    if there := [file for file in files if file.exists()]:
        raise RewardRefused(f"{there[0]} exists already: choose another file; nothing is overwritten")
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    return list(files)
