"""`ladder reward check` on rewards that are broken on purpose, on good ones, and on what the documentation says."""

import json
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from launch import reward_exam
from launch.cli import main
from launch.reward_cases import judged, read_cases
from launch.reward_check import inquiry
from launch.reward_exam import examine
from launch.reward_findings import RewardRefused, findings_of, why
from launch.reward_texts import RIGHT, WRONG, example_rows, texts_of
from reward_stand_ins import InProcess, example, group, line
from rewards.compose import BuiltIn, built_in
from rewards.loading import load_reward
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import Failure, Limits, RewardProcess

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
BROKEN = """
import random, time

def chance(completion_text, example):
    return random.random()

def first_word(completion_text, example):
    return float(completion_text.split()[0] == "<think>")

def hang(completion_text, example):
    while completion_text.count("<think>") > 100:
        time.sleep(0.01)
    return 0.5

def hashed(completion_text, example):
    return hash(completion_text) % 1000 / 1000
"""


@pytest.fixture
def broken(tmp_path) -> Path:
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path / "broken.py"


@pytest.mark.parametrize(
    "name, parts",
    [
        ("chance", ["FAIL  repeatable", "168 of 168 values differ", "no random numbers, no clock"]),
        ("first_word", ["FAIL  exceptions", "16 of 168 calls raise, 'empty', 'whitespace' on 8 of 8 rows: IndexError"]),
        ("hang", ["FAIL  deadline", "no value within 0.5 s, 'repeated tags' on 2 of 8 rows; then the rest"]),
        ("hashed", ["PASS  repeatable", "PASS  order", "FAIL  fresh process", "use hashlib"]),
    ],
)
def test_the_fault_of_a_broken_reward_is_named(broken, capsys, name, parts):
    timeout = "0.5" if name == "hang" else "20"  # a busy machine is no fault
    assert main(["reward", "check", f"{broken}:{name}", "--timeout", timeout]) == 1
    told = capsys.readouterr().out
    assert all(part in told for part in parts), told
    assert told.count("FAIL") == 1 and told.endswith("1 fault found\n")


def examined(monkeypatch, function, batched=False, process=InProcess):
    """Findings by clause (the last of each)."""
    monkeypatch.setattr(reward_exam, "started", lambda spec, limits: closing(process(function, batched)))
    spec = RewardSpec("mine.py:mine", batched=batched)
    exam = examine(spec, Limits(), example_rows(["a.png", "b.png"]), pytest.fail)
    return {finding.name: finding for finding in findings_of(exam)}


def test_what_differs_within_a_row_is_a_fault(monkeypatch):
    found = examined(monkeypatch, lambda text, row: {"a" if "answer" in text else "b": 1.0})
    assert found["components"].status == "FAIL" and "mine/a for 'right', mine/b for 'empty'" in found["components"].what
    found = examined(monkeypatch, lambda text, row: {} if row.options else {"a": 0.5, "b": float(len(text) % 2)})
    assert found["components"].what.endswith("mine/a, mine/b") and found["components"].status == "PASS"
    assert found["applies"].what.startswith("to 5 of 8 rows; not to built-in/relative distance")


def test_a_number_that_is_not_finite_is_a_fault_of_its_text(monkeypatch):
    found = examined(monkeypatch, lambda text, row: float(text.partition("<answer>")[2][:3]) if "NaN" in text else 0.0)
    assert found["values"].status == "FAIL" and "8 of 168" in found["values"].what and "'NaN'" in found["values"].what
    assert (found["range"].status, found["range"].what) == ("NOTE", "mine is 0 for everything")


def test_what_is_no_number_at_all_is_a_fault(monkeypatch):
    found = examined(monkeypatch, lambda text, row: "0.5")
    assert found["values"].status == "FAIL" and "reward 'mine' returned '0.5'" in found["values"].what
    assert "168 of 168" in found["values"].what and "batched" not in found["values"].remedy
    found = examined(monkeypatch, lambda text, row: [0.0 for _ in text])
    assert found["values"].what.startswith("168 of 168 completions have no finite number")
    assert "reward 'mine' returned a list, [0.0, " in found["values"].what
    assert found["values"].what.endswith("one that takes the texts of a group at once needs `batched: true`")
    assert found["values"].remedy.endswith("use --batched (in a run: `batched: true`)")
    found = examined(monkeypatch, lambda text, row: row.metadata["depth"])
    assert "or rows like yours (--cases)?" in found["exceptions"].remedy and found["values"].status == "NOTE"
    assert found["repeatable"].what.endswith("no completion has a value")


def test_a_reward_that_ends_its_process_is_not_asked_for_ever(monkeypatch):
    class Ending(InProcess):
        def custom(self, place, row, texts):
            if not texts[0]:
                return [Failure("error", f"row {row.id}: reward 'mine': its process exited with code 4; it last printed: x")]
            return super().custom(place, row, texts)

    found = examined(monkeypatch, lambda text, row: 1.0, process=Ending)
    assert found["process"].what.startswith("3 calls end the process, 'empty' on 3 of 8 rows: its process exited with")
    assert found["process"].what.endswith("then the rest was not asked") and found["repeatable"].status == "NOTE"


def test_a_batched_reward_may_look_at_its_group_but_not_at_places_in_it(monkeypatch):
    def shortest(texts, row):
        return [float(len(text) == min(map(len, texts))) for text in texts]

    assert {finding.status for finding in examined(monkeypatch, shortest, batched=True).values()} == {"PASS", "NOTE"}
    found = examined(monkeypatch, lambda texts, row: list(range(len(texts))), batched=True)
    assert [found[name].status for name in ("repeatable", "fresh process", "order")] == ["PASS", "PASS", "FAIL"]
    assert found["range"].what == "mine is in [0, 20]"

    def one_bad(texts, row):
        if "" in texts:
            raise ValueError("nothing there")
        return shortest(texts, row)

    found = examined(monkeypatch, one_bad, batched=True)
    assert found["exceptions"].what == "8 of 168 calls raise, 'empty' on 8 of 8 rows: ValueError: nothing there"
    assert found["values"].what == "finite numbers for 160 completions" and found["order"].status == "PASS"
    found = examined(monkeypatch, lambda text, row: 1.0, batched=True)
    assert found["values"].status == "FAIL" and "does it take one text" in found["values"].remedy


def test_a_group_with_a_value_too_few_is_told_as_the_run_would_lose_it(monkeypatch):
    found = examined(monkeypatch, lambda texts, row: [float(len(text)) for text in texts if text], batched=True)
    assert found["values"].what == (
        "8 of 168 completions have no finite number ('empty' on 8 of 8 rows): reward 'mine' returned 20 values for 21 "
        "completions, so that the whole group loses its scores: return one for each, in order"
    )
    assert "an exception object in the list stands in for a text without a score" in found["values"].remedy
    found = examined(monkeypatch, lambda texts, row: [1.0 for _ in texts[1:]], batched=True)
    assert "168 of 168" in found["values"].what and "20 values for 21 completions" in found["values"].what


def test_a_turned_sign_is_told_from_a_reward_that_does_not_judge(monkeypatch):
    found = examined(monkeypatch, lambda text, row: 0.5)["right or wrong"]
    assert found.status == "NOTE" and found.what.endswith(
        "the wrong one: equal on 8 of 8 rows: built-in/object size, built-in/absolute distance, built-in/object count and 5 "
        "more"
    )
    assert "sign" not in found.remedy

    def turned(text, row):
        return -float(text == texts_of(row)[RIGHT]) if row.options else 0.0

    found = examined(monkeypatch, turned)
    assert found["right or wrong"].what == (
        "the right completion against the wrong one: worth less on 3 of 8 rows (is its sign turned?): built-in/relative "
        "distance, built-in/relative direction, built-in/appearance order; equal on 5 of 8 rows: built-in/object size, "
        "built-in/absolute distance, built-in/object count and 2 more"
    )
    assert "signs of its values and its weight" in found["right or wrong"].remedy
    assert found["range"].what == "mine is in [-1, 0]"
    assert examined(monkeypatch, lambda text, row: -0.0)["range"].what == "mine is 0 for everything"


def test_a_reason_keeps_its_beginning_and_its_end():
    spec, said = RewardSpec("mine.py:mine"), "ValueError: " + "x" * 400 + " (mine.py:5, in helper)"
    shown = why(Failure("error", f"row r: reward 'mine': {said}"), spec)
    assert len(shown) == 300 and shown == f"{said[:159]}…{said[-140:]}"


def test_a_server_that_is_down_is_to_be_started(capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    assert main(["reward", "check", "http", "--param", f'url="{url}"', "--param", "retries=0", "--timeout", "20"]) == 1
    told = capsys.readouterr().out
    assert f"RewardCallError: POST {url}: no answer, 'ConnectionRefusedError: " in told
    assert "is the server up, and fast enough for 10 s? (attempts: 1)\n" in told
    assert "      -> no call has an answer of use: start the server (or correct its address) and ask again\n" in told


def test_processes_that_gather_are_a_fault_and_helpers_a_note(monkeypatch):
    class Gathering(InProcess):
        pid, left = 7, 0

        def helpers(self):
            self.left += 1
            return self.left

    class WithHelper(InProcess):
        pid = 7

        def helpers(self):
            return 1

    monkeypatch.setattr(reward_exam, "SETTLE_SECONDS", 0.0)
    found = examined(monkeypatch, lambda text, row: 1.0, process=Gathering)
    assert found["processes"].status == "FAIL" and "those of 8 rows" in found["processes"].what
    found = examined(monkeypatch, lambda text, row: 1.0, process=WithHelper)
    assert found["processes"].status == "NOTE" and found["processes"].what.startswith("1 are left")


def test_printing_at_every_call_is_a_note_and_stays_out_of_the_report(monkeypatch, capsys):
    found = examined(monkeypatch, lambda text, row: print("scored it", file=sys.stderr) or 0.5)
    assert found["printing"].status == "NOTE" and "beginning: scored it" in found["printing"].what
    assert "scored it" not in capsys.readouterr().err


def test_the_texts_tell_a_right_answer_from_a_wrong_one():
    rows = example_rows(["a.png", "b.png"])
    assert len({row.question_type for row in rows}) == 8
    for row in rows:
        texts, settings = texts_of(row), RewardSettings()
        assert len(texts["very long"]) == 100_000 and texts["empty"] == ""
        right, wrong = (built_in(texts[name], row, settings) for name in (RIGHT, WRONG))
        assert isinstance(right, BuiltIn) and set(right.components.values()) == {1.0}, row.id
        assert wrong.components["format"] == 1.0 and sum(wrong.components.values()) == 1.0, row.id
        for text in texts.values():
            built_in(text, row, settings)


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture
def near(tmp_path, monkeypatch) -> Path:
    """The files of the documentation's example, in the current directory."""
    (tmp_path / "near.py").write_text(blocks("python")[0])
    (tmp_path / "near_cases.jsonl").write_text(blocks("jsonl")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "near.py"


@pytest.mark.parametrize(
    "true, given, expected",
    [
        ("4", "4", 1.0),
        ("4", "4.4", 1.0),
        ("4", "3.6", 1.0),
        ("4", "4.40001", 1.59999 / 1.6),
        ("4", "5.2", 0.5),
        ("4", "2.8", 0.5),
        ("4", "5.92", 0.05),
        ("4", "6", 0.0),
        ("4", "2", 0.0),
        ("4", "4 m", 1.0),
        ("4", "400 cm", 0.0),
        ("4", "", 0.0),
        ("0.3", "0.35", 1.0),
        ("0.3", "0.25", 1.0),
        ("0.3", "0.4", 0.5),
        ("0.3", "0.45", 0.0),
        ("0.08", "0.13", 1.0),
        ("0.08", "0.14", 0.0),
    ],
)
def test_the_documented_reward_is_worth_what_it_says(near, true, given, expected):
    reward = load_reward(RewardSpec(f"{near}:near"))
    distance = replace(example_rows(["a.png"])[1], answer=true)
    text, exactly = f"<answer>{given}</answer>", pytest.approx(expected, abs=1e-9)
    assert reward.components(reward.call(text, distance)) == {"near": exactly}
    assert reward.components(reward.call(text, replace(distance, question_type="object count"))) == {}


def test_the_documented_session_is_what_happens_and_a_replay_has_exact_numbers(near, tmp_path, capsys):
    texts = {value: f"<think>so</think><answer>{value}</answer>" for value in ("2.4", "3.12", "3.6", "4.4", "4", "7")}
    groups = [
        group(example("absolute distance", "2.4"), 1, (texts["2.4"], 2.0), (texts["3.12"], 1.5), (texts["3.6"], 0.5)),
        group(example("absolute distance", "4"), 0, (texts["4.4"], 1.9), (texts["4"], 2.0)),
        group(example("object count", "7"), 0, (texts["7"], 2.0)),
    ]
    folder = tmp_path / "run" / "grpo" / "traces"
    folder.mkdir(parents=True)
    (folder / "groups.jsonl").write_text("".join(map(line, groups)))
    assert main(["reward", "check", "near.py:near", "--cases", "near_cases.jsonl", "--traces", "run"]) == 0
    told = capsys.readouterr().out

    session = next(block for block in blocks("") if block.startswith("$ ladder reward check near.py:near"))
    timed = [row for row in session.splitlines()[1:] if row.startswith(("PASS  loads", "PASS  time"))]
    assert len(timed) == 2 and all(row in told.splitlines() for row in session.splitlines()[1:] if row not in timed), told

    correlation = np.corrcoef([1.0, 0.5, 0.0, 1.0, 1.0], [2.0, 1.5, 0.5, 1.9, 2.0])[0, 1]
    for part in (
        "run/grpo/traces/groups.jsonl: 3 groups, 6 completions asked, 1 cut off or aborted and not scored, "
        "1 group to which it does not apply",
        "failed   0 of 6 (0.0%)",
        "mean 0.7000  min 0.0000  max 1.0000",
        f"recorded total: {correlation:+.3f}",
        "without spread: 1 of 2 (50.0%)",
        "lowest       0.0000  <think>so</think><answer>3.6</answer>",
        "they do not hold processed_size of every row",
    ):
        assert part in told, told
    assert told.count("highest ") == told.count("lowest ") == 3


def test_cases_with_a_wrong_expectation_and_a_reward_that_needs_metadata(tmp_path, capsys):
    (tmp_path / "deep.py").write_text("def deep(completion_text, example):\n    return example.metadata['depth'] / 10\n")
    row = {"question_type": "object count", "answer": "3", "metadata": {"depth": 4}}
    expected = [0.4, 0.5, 0.4000009, {"score": 0.4}, None]
    cases = [{"text": "x", "example": row} | ({} if value is None else {"expected": value}) for value in expected]
    cases.append({"text": "x", "example": {"question_type": "object count", "metadata": {}}})
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    assert main(["reward", "check", f"{tmp_path}/deep.py:deep", "--cases", f"{tmp_path}/cases.jsonl"]) == 1
    told = capsys.readouterr().out
    for part in (
        "NOTE  rows           asked about the rows of the cases only: it has no value on any built-in row",
        "FAIL  exceptions     21 of 42 calls raise",
        "PASS  case line 1    0.4\nFAIL  case line 2    expected 0.5, got 0.4\n",
        "PASS  case line 3    0.4\nFAIL  case line 4    expected score 0.4, got 0.4\n",
        "PASS  case line 5    0.4\nFAIL  case line 6    no value: KeyError: 'depth' (deep.py:2, in deep)\n",
    ):
        assert part in told, told
    assert told.endswith("4 faults found\n")


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "holds no cases"),
        ("nonsense", "cases.jsonl:1: Expecting value"),
        ('{"text": "x"}', ":1: 'example' is missing; a line is"),
        ('\n{"text": "x", "example": {"answer": "2"}}', ":2: 'question_type' is missing"),
        ('{"text": "x", "example": {"question_type": "t", "awnser": "2"}}', "no field 'awnser': it has id, question"),
        ('{"text": "x", "example": {"question_type": "t", "answer": 2}}', "answer 2 must be a text"),
        ('{"text": "x", "example": {"question_type": "t"}, "expected": "1"}', "expected '1': a finite number"),
        ('{"text": "x", "example": {"question_type": "t"}, "expect": 1}', "unknown key 'expect'"),
        ('{"text": "x", "example": {"question_type": "t", "target_boxes": [["a", [1, 2, 3]]]}}', "a box of target_boxes is"),
    ],
)
def test_lines_that_are_no_cases_are_refused(tmp_path, text, part):
    (tmp_path / "cases.jsonl").write_text(text)
    with pytest.raises(RewardRefused) as refused:
        read_cases(tmp_path / "cases.jsonl")
    assert part in str(refused.value)


def test_a_case_is_a_whole_row(tmp_path):
    given = {"id": "i", "question": "q", "question_type": "object localization", "media": ["a.png"], "metadata": {"k": 1}}
    given |= {"processed_size": [56, 84], "target_boxes": [["chair", [1, 2, 3, 4]]]}
    (tmp_path / "cases.jsonl").write_text(json.dumps({"text": "x", "example": given, "expected": {}}))
    (case,) = read_cases(tmp_path / "cases.jsonl")
    assert case.row.target_boxes == (("chair", (1.0, 2.0, 3.0, 4.0)),) and case.row.media == (str(tmp_path / "a.png"),)
    assert case.row.processed_size == (56, 84) and case.expected == {}
    assert judged(case, {}, RewardSpec("f.py:mine")).status == "PASS"
    assert judged(case, {"mine": 1.0}, RewardSpec("f.py:mine")).status == "FAIL"


CONFIG = """
reward:
  timeout_seconds: 3
  retries: 2
  memory_mib: 512
  custom:
    - {source: mine.py:first, weight: 0.5, params: {scale: 2, unit: m}}
    - {source: mine.py:first, name: again, weight: -1, batched: true}
    - judge
"""


def test_a_configuration_says_how_the_reward_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def first(completion_text, example, **params):\n    return 0.0\n")
    (tmp_path / "c.yaml").write_text(CONFIG)
    asked = inquiry("first", config=Path("c.yaml"), params=["scale=3"])
    assert asked.spec == RewardSpec(f"{tmp_path}/mine.py:first", "", 0.5, {"scale": 3, "unit": "m"})
    assert asked.limits == Limits(3.0, 0, 512)
    asked = inquiry("again", config=Path("c.yaml"), timeout=7.0, overrides=["reward.memory_mib=0"])
    assert (asked.spec.weight, asked.spec.batched, asked.limits) == (-1.0, True, Limits(7.0, 0, 0))
    assert inquiry("judge", config=Path("c.yaml")).spec.source == "judge"
    assert inquiry("x.py:f").limits == Limits(10.0, 0, 4096) and inquiry("x.py:f", batched=True).spec.batched
    with pytest.raises(RewardRefused, match="is more than one of its rewards: give the component"):
        inquiry("mine.py:first", config=Path("c.yaml"))
    with pytest.raises(RewardRefused, match=r"'other' is none of its rewards; reward.custom has: first \(mine.py:first\),"):
        inquiry("other", config=Path("c.yaml"))


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["absent.py:f"], "there is no file"),
        (["absent.py"], "write absent.py:FUNCTION\n"),
        (["broken.py"], "write broken.py:FUNCTION; its functions: chance, first_word, hang, hashed\n"),
        (["broken.py:absent"], "no 'absent' in the file; its functions: chance"),
        (["unknown"], "the name of an entry point"),
        (["broken.py:chance", "--param", "scale"], "must be written NAME=JSON"),
        (["broken.py:chance", "--param", "unit=m"], """a text needs quotes: 'unit="m"'"""),
        (["broken.py:chance", "--param", "scale=2"], "unexpected keyword argument 'scale'"),
        (["broken.py:chance", "--set", "reward.retries=1"], "give it with --config"),
        (["broken.py:chance", "--timeout", "0"], "--timeout 0: must be"),
        (["broken.py:chance", "--timeout", "nan"], "--timeout nan: must be"),
        (["broken.py:chance", "--cases", "absent.jsonl"], "cannot be read"),
        (["broken.py:chance", "--traces", "absent"], "no traces there"),
        (["broken.py:chance", "--config", "absent.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_one_message(broken, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(broken.parent)
    assert main(["reward", "check", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and part in told.err and "Traceback" not in told.err


def test_configurations_of_the_documentation_are_valid(tmp_path, monkeypatch):
    for name in re.findall(r"\$([A-Z_]+)", "".join(blocks("yaml"))):
        monkeypatch.setenv(name, "hunter2")
    assert len(blocks("yaml")) == 4
    (tmp_path / "configs").symlink_to(Path(__file__).resolve().parents[2] / "configs")
    for block in blocks("yaml"):
        (tmp_path / "c.yaml").write_text(block)
        (tmp_path / "near.py").write_text(blocks("python")[0])
        (own,) = load_config(tmp_path / "c.yaml").reward.custom
        source = own.source if own.source in ("http", "judge") else f"{tmp_path}/{own.source}"
        load_reward(RewardSpec(source, own.name or "", own.weight, own.params))  # the params fit its signature


def test_the_documented_server_keeps_the_contract(tmp_path, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(blocks("python")[1].replace("8100", str(port)))
    server = subprocess.Popen([sys.executable, str(tmp_path / "server.py")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        assert main(["reward", "check", "http", "--param", f'url="http://127.0.0.1:{port}/score"', "--timeout", "30"]) == 0
    finally:
        server.kill()
        server.wait()
    told = capsys.readouterr().out
    assert "the texts of a group at once" in told and "21 values are the same on 1 of 8 rows" in told
    assert "PASS  right or wrong the right completion is worth more than the wrong one on all 7 rows" in told


def test_the_documented_reward_runs_in_its_process(near):
    row = example_rows(["a.png"])[1]
    process = RewardProcess(RewardSettings(), [RewardSpec(f"{near}:near", params={"metres": 0.5})], Limits(20.0))
    with closing(process):
        results = process.custom(0, row, ["<answer>2.9</answer>", "<answer>3.25</answer>", ""])
        assert [result["near"] for result in results] == [1.0, pytest.approx(0.5), 0.0]
