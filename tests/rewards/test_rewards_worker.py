"""The killable process on real child processes: misbehaviour costs the call under way, is named, and leaves nothing."""

import hashlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from rewards.compose import BuiltIn
from rewards.errors import RewardContractError
from rewards.process_tree import descendants
from rewards.rows import RewardRow
from rewards.settings import RewardSettings, RewardSpec
from rewards.worker import Failure, Limits, RewardProcess

ROW = RewardRow("train/1", "Which is nearest?", "relative distance", ("A. chair", "B. table"), "B", media=("a.png",))
HOSTILE = r'''
import asyncio, ctypes, os, subprocess, sys, time

ASKED = ["1"]

class Unpicklable(Exception):
    def __init__(self):
        super().__init__("payload")
        self.payload = (lambda: 0, open("/dev/null"))

class Mute(Exception):
    def __str__(self):
        raise RuntimeError

def hostile(text, example):
    """Does what the text says; else gives its length."""
    if text == "loop":
        while True:
            pass
    if text == "hang":  # in C, where no Python signal handler runs
        ctypes.CDLL(None).pause()
    if text == "segfault":
        ctypes.string_at(0)
    if text == "_exit":
        os._exit(7)
    if text == "exit":
        sys.exit("enough")
    if text == "forks":
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(0)
        time.sleep(600)
    if text == "memory":
        block = bytearray(10 << 30)
        return float(len(block))
    if text == "prints":
        line = "x" * 9999 + "\n"
        for _ in range(10_000):
            sys.stdout.write(line)
        print("the last line")
    if text == "unpicklable":
        raise Unpicklable
    if text == "mute":
        raise Mute
    if text == "nan":
        return float("nan")
    if text == "socket":
        for descriptor in range(3, 1024):  # the socket has the number it had in the parent
            try:
                os.write(descriptor, b"\x00\x00\x00\x04junk")
            except OSError:
                pass
        time.sleep(600)
    if text == "half":  # of the length of a message
        for descriptor in range(3, 1024):
            try:
                os.write(descriptor, b"\x00\x00")
            except OSError:
                pass
        time.sleep(600)
    if text == "daemon":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        ctypes.string_at(0)
    if text == "kills its group":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os.killpg(0, 9)
    if text == "again":
        for descriptor in range(3, 1024):
            try:
                message = b'[%d, [[0, {"value": {"hostile": 9.0}}]]]' % int(ASKED[0])
                os.write(descriptor, len(message).to_bytes(4, "big") + message)
            except OSError:
                pass
        time.sleep(600)
    if text == "fork":
        os.fork()
    return float(len(text))

HOARD = []

def hoards(text, example):
    if text == "hoard":
        while True:
            HOARD.append(bytearray(64 << 20))
    return float(len(bytearray(200 << 20)) > 0)

def fills(text, example):
    """Leaves its process without room, and hides it."""
    try:
        while text == "fill":
            HOARD.append(bytearray(1 << 20))
    except MemoryError:
        pass
    return 1.0

async def swallows(text, example):
    try:
        await asyncio.sleep(600 if text == "slow" else 0)
    except:
        pass
    return 0.0

async def cancels(text, example):
    if text == "cancel":
        raise asyncio.CancelledError
    return 1.0

def odd_group(texts, example):
    return [10**400, {"\ud800": 1.0}, {"k" * 65: 1.0}, -1e7, 2]

async def in_thread(text, example):
    await asyncio.to_thread(time.sleep, 600 if text == "slow" else 0)
    return 1.0

def group(texts, example):
    if "hang" in texts:
        time.sleep(600)
    if "raise" in texts:
        raise KeyError("no such thing")
    return [KeyError("this one") if text == "bad" else {"length": len(text)} for text in texts]

async def later(text, example):
    if text == "sleep":
        await asyncio.sleep(600)
    if text == "block":
        time.sleep(600)
    await asyncio.sleep(0.3)
    return 1.0

async def together(texts, example):
    await asyncio.sleep(0.01)
    return [1.0] * len(texts)

def sometimes(text, example, *, marks):
    path = os.path.join(marks, text)
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(3)
    return 1.0

async def slow_once(text, example, *, marks):
    path = os.path.join(marks, text)
    if not os.path.exists(path):
        open(path, "w").close()
        await asyncio.sleep(600)
    return 1.0

def sometimes_raises(text, example, *, marks):
    with open(os.path.join(marks, "calls"), "a") as file:
        file.write("x")
    raise ValueError("as always")

def leaves(text, example):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    return 1.0
'''


@pytest.fixture
def process_of(tmp_path):
    """Makes processes with one reward of HOSTILE; all are closed."""
    (tmp_path / "mine.py").write_text(HOSTILE)
    made = []

    def make(name: str, timeout: float = 1.0, retries: int = 0, memory_mib: int = 2048, **spec) -> RewardProcess:
        specs = [RewardSpec(f"{tmp_path}/mine.py:{name}", **spec)]
        made.append(RewardProcess(RewardSettings(), specs, Limits(timeout, retries, memory_mib)))
        return made[-1]

    yield make
    for process in made:
        process.close()


def gone(*pids: int) -> bool:
    """Whether processes have ended; a moment is allowed for the kernel."""
    for _ in range(50):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    "act, outcome, told",
    [
        ("loop", "timeout", "no score within 1 s; its process was killed"),
        ("hang", "timeout", "no score within 1 s"),
        ("forks", "timeout", "no score within 1 s"),
        ("segfault", "error", "its process ended by SIGSEGV"),
        ("_exit", "error", "its process exited with code 7"),
        ("exit", "error", "its process exited with code 1; it last printed: enough"),
        ("memory", "error", "MemoryError: .*reward.memory_mib"),
        ("unpicklable", "error", "Unpicklable: payload"),
        ("mute", "error", "Mute: .its message does not print"),
        ("nan", "error", "RewardContractError: reward 'hostile' returned nan"),
        ("socket", "error", "sent what is no answer and was killed"),
        ("half", "timeout", "no score within 1 s"),
        ("daemon", "error", "its process ended by SIGSEGV"),
        ("kills its group", "error", "its process ended by SIGKILL"),
        ("again", "error", "sent what is no answer and was killed"),  # another score for the text before
    ],
)
def test_an_act_costs_its_own_call_and_leaves_no_process(process_of, act, outcome, told):
    process = process_of("hostile")
    first = process.pid
    before, failure, after = process.custom(0, ROW, ["one", act, "three"])
    assert (before, after) == ({"hostile": 3.0}, {"hostile": 5.0})
    assert failure.outcome == outcome
    assert failure.detail.startswith("row train/1: reward 'hostile': ")
    assert re.search(told, failure.detail), failure.detail
    survived = act in ("unpicklable", "mute", "nan")  # an exception ends no process, but for one of memory
    assert (process.pid == first) == survived and (survived or gone(first))
    assert process.custom(0, ROW, ["four"]) == [{"hostile": 4.0}]
    own = {process.pid} | descendants(process.pid)
    assert len(own) == 2  # supervisor and server
    process.close()
    assert gone(*own)


def test_processes_that_get_away_are_killed_with_theirs(process_of):
    process = process_of("leaves")
    assert process.custom(0, ROW, ["a", "b"]) == [{"leaves": 1.0}] * 2
    below = descendants(process.pid)
    assert len(below) == 3  # with the server
    pid = process.pid
    process.close()
    assert gone(pid, *below)


def test_a_copy_of_the_process_answers_nobody(process_of):
    process = process_of("hostile")
    assert process.custom(0, ROW, ["fork", "one"]) == [{"hostile": 4.0}, {"hostile": 3.0}]
    right, wrong = process.built_in(ROW, ["<think>x</think><answer>B</answer>", "A"])
    assert right.components["answer"] == 1.0 and wrong.components["answer"] == 0.0
    assert process.custom(0, ROW, ["twelve"]) == [{"hostile": 6.0}]


def test_a_process_full_of_memory_is_replaced(process_of):
    process = process_of("hoards", timeout=20.0, memory_mib=1024)
    failure, after = process.custom(0, ROW, ["hoard"])[0], process.custom(0, ROW, ["light"])[0]
    assert "MemoryError" in failure.detail and after == {"hoards": 1.0}


def test_what_one_call_has_filled_costs_no_other_of_its_group(process_of):
    process = process_of("hoards", timeout=20.0, memory_mib=1024)
    failure, *others = process.custom(0, ROW, ["hoard", "light", "light"])
    assert "MemoryError" in failure.detail and others == [{"hoards": 1.0}] * 2


def test_the_house_scores_in_a_new_process_when_a_reward_has_left_no_room(process_of):
    process = process_of("fills", timeout=20.0, memory_mib=700)
    assert process.custom(0, ROW, ["fill"]) == [{"fills": 1.0}]
    answers = process.built_in(ROW, ["<think>x</think><answer>B</answer>"] * 4)
    assert [answer.components["answer"] for answer in answers] == [1.0] * 4


def test_a_deadline_that_was_swallowed_is_a_timeout_all_the_same(process_of):
    fast, slow = process_of("swallows").custom(0, ROW, ["fast", "slow"])
    assert fast == {"swallows": 0.0} and slow.outcome == "timeout"


def test_a_call_that_cancels_itself_costs_itself(process_of):
    one, failure, three = process_of("cancels").custom(0, ROW, ["one", "cancel", "three"])
    assert one == three == {"cancels": 1.0}
    assert failure.outcome == "error" and "CancelledError" in failure.detail


def test_odd_values_of_a_group_cost_their_own_completions(process_of):
    *odd, good = process_of("odd_group", batched=True).custom(0, ROW, ["a", "b", "c", "d", "e"])
    assert good == {"odd_group": 2.0} and {failure.outcome for failure in odd} == {"error"}
    told = [failure.detail.partition("returned ")[2] for failure in odd]
    assert told[0].startswith("1000") and "none beyond 1e+06 either way" in told[3]
    assert told[1].startswith("the key '\\ud800': name components by printable strings of 1 to 64 characters")
    assert told[2].startswith("the key 'kkkk")


def test_threads_that_late_calls_have_left_never_add_up(process_of):
    process = process_of("in_thread")
    for _ in range(3):
        assert {late.outcome for late in process.custom(0, ROW, ["slow"] * 3)} == {"timeout"}
    assert process.custom(0, ROW, ["fast"] * 4) == [{"in_thread": 1.0}] * 4


def test_a_thread_that_a_late_call_left_behind_costs_nobody_else(process_of):
    process = process_of("in_thread")
    fast, slow = process.custom(0, ROW, ["fast", "slow"])
    assert fast == {"in_thread": 1.0} and slow.outcome == "timeout"
    assert not [own for own in process.built_in(ROW, ["A", "B"]) if isinstance(own, Failure)]
    assert process.custom(0, ROW, ["fast"]) == [{"in_thread": 1.0}]


def test_a_process_that_ended_between_calls_costs_no_call(process_of):
    process = process_of("hostile")
    server = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    assert gone(*server)
    assert process.custom(0, ROW, ["one"]) == [{"hostile": 3.0}]


def test_a_request_larger_than_the_socket_holds_arrives(process_of):
    texts = ["x" * 20_000] * 64
    assert process_of("hostile").custom(0, ROW, texts) == [{"hostile": 20_000.0}] * 64


def test_no_amount_of_printing_makes_a_reward_wait(process_of, capfd):
    process = process_of("hostile", timeout=20.0)
    assert process.custom(0, ROW, ["prints"]) == [{"hostile": 6.0}]  # 100 MB
    passed = capfd.readouterr().err
    assert "what follows is dropped" in passed and len(passed) < 70_000
    (failure,) = process.custom(0, ROW, ["_exit"])
    assert failure.detail.endswith("it last printed: the last line")


def test_a_batched_reward_is_called_once_and_fails_as_one(process_of):
    process = process_of("group", batched=True)
    good, bad = process.custom(0, ROW, ["abc", "bad"])
    assert good == {"group/length": 3.0} and bad.outcome == "error" and "KeyError: 'this one'" in bad.detail
    assert [failure.outcome for failure in process.custom(0, ROW, ["abc", "raise"])] == ["error"] * 2
    assert [failure.outcome for failure in process.custom(0, ROW, ["abc", "hang"])] == ["timeout"] * 2
    assert process.custom(0, ROW, ["abc"]) == [{"group/length": 3.0}]


def test_async_calls_of_a_group_run_together_each_with_its_deadline(process_of):
    process = process_of("later", timeout=2.0)
    first, begun = process.pid, time.monotonic()
    results = process.custom(0, ROW, ["a"] * 20 + ["sleep"])
    assert results[:20] == [{"later": 1.0}] * 20 and results[20].outcome == "timeout"
    assert time.monotonic() - begun < 5 and process.pid != first  # one after the other would take 6 s and the deadline
    blocked = process.custom(0, ROW, ["a", "block"])
    assert {result.outcome for result in blocked if isinstance(result, Failure)} == {"timeout"}
    assert process_of("together", batched=True).custom(0, ROW, ["a", "b"]) == [{"together": 1.0}] * 2


def test_a_call_whose_process_ended_is_tried_again_and_one_that_raised_is_not(process_of, tmp_path):
    (tmp_path / "marks").mkdir()
    params = {"marks": str(tmp_path / "marks")}
    assert process_of("sometimes", retries=1, params=params).custom(0, ROW, ["a", "b"]) == [{"sometimes": 1.0}] * 2
    (once,) = process_of("sometimes", retries=0, params=params).custom(0, ROW, ["c"])
    assert once.outcome == "error" and "exited with code 3" in once.detail
    slow = process_of("slow_once", timeout=1.0, retries=1, params=params)
    assert slow.custom(0, ROW, ["e", "f"]) == [{"slow_once": 1.0}] * 2
    (raised,) = process_of("sometimes_raises", retries=3, params=params).custom(0, ROW, ["d"])
    assert "ValueError: as always" in raised.detail and (tmp_path / "marks" / "calls").read_text() == "x"


def test_built_in_rewards_are_scored_there_and_a_row_that_cannot_be_is_an_error(process_of):
    process = process_of("hostile")
    right, wrong = process.built_in(ROW, ["<think>x</think><answer>B</answer>", "A"])
    assert right == BuiltIn({"format": 1.0, "answer": 1.0}, ("format", "answer"), True)
    assert wrong.components == {"format": 0.0, "answer": 0.0}
    (failure,) = process.built_in(RewardRow("r", "q", "relative distance", ("A. x",), "C"), ["A"])
    assert failure.outcome == "error" and "row r: the built-in rewards: GroundTruthError" in failure.detail


@pytest.mark.parametrize(
    "content, message",
    [
        ("def other(text, example): return 0.0", "no 'hostile' in the file"),
        ("import nothing_of_that_name", "does not import"),
        ("import os; os._exit(3)", "exited with code 3"),
        ("print('why it ends'); raise SystemExit(4)", "exited with code 4; it last printed: why it ends"),
        ("block = bytearray(10 << 30)", "does not import: MemoryError"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused_at_the_start(tmp_path, content, message):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(RewardContractError, match=message):
        RewardProcess(RewardSettings(), [RewardSpec(f"{tmp_path}/bad.py:hostile")], Limits(memory_mib=2048))


MOSTLY = """
import json

def helper(text):
    assert text != "long", "x" * 9000
    return json.loads(text)

def mostly(text, example):
    return helper(text)

async def later(text, example):
    return helper(text)

def group(texts, example):
    items = []
    for text in texts:
        try:
            items.append(helper(text))
        except AssertionError as error:
            items.append(error)
    return items

class Judge:
    def __call__(self, text, example):
        return helper(text)

judge_it = Judge()

def infinite(text, example):
    return float("inf")
"""


@pytest.mark.parametrize(
    "name, text, end",
    [
        ("mostly", "", "char 0) (mostly.py:6, in helper)"),
        ("mostly", "long", "xxx (mostly.py:5, in helper)"),
        ("later", "", "char 0) (mostly.py:6, in helper)"),
        ("group", "", "char 0) (mostly.py:6, in helper)"),
        ("group", "long", "xxx (mostly.py:5, in helper)"),
        ("judge_it", "", "char 0) (mostly.py:6, in helper)"),
        ("infinite", "", "none beyond 1e+06 either way"),  # nothing was raised in the file
    ],
)
def test_what_a_reward_raises_has_its_deepest_place_in_the_file(tmp_path, name, text, end):
    (tmp_path / "mostly.py").write_text(MOSTLY)
    spec = RewardSpec(f"{tmp_path}/mostly.py:{name}", batched=name == "group")
    process = RewardProcess(RewardSettings(), [spec], Limits())
    (failure,) = process.custom(0, ROW, [text])
    process.close()
    assert failure.detail.endswith(end) and "\n" not in failure.detail, failure.detail
    assert len(failure.detail) == len(f"row train/1: reward '{name}': ") + 2000 or text != "long"


def test_what_was_executed_is_what_the_version_says_however_fast_a_file_changes(tmp_path, monkeypatch):
    """The import system keeps what it compiled for a file of the same size and second."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    file, versions = tmp_path / "mine.py", []
    for value in ("0.1", "0.9"):
        source = f"def mine(text, example): return {value}\n"
        file.write_text(source)
        os.utime(file, (1e9, 1e9))
        process = RewardProcess(RewardSettings(), [RewardSpec(f"{file}:mine")], Limits())
        assert process.custom(0, ROW, ["a"]) == [{"mine": float(value)}]
        assert process.versions == {"mine": hashlib.sha256(source.encode()).hexdigest()}
        process.close()


def test_code_of_an_entry_point_runs_in_its_process_only(tmp_path, monkeypatch):
    package = tmp_path / "tidy_package"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nHERE = os.getpid()\n")
    source = "from tidy_package import HERE\n\ndef tidy(text, example): return float(HERE / len(text))\n"
    (package / "inner.py").write_text(source)
    info = tmp_path / "tidy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tidy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spatialladder.rewards]\ntidy = tidy_package.inner:tidy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    process = RewardProcess(RewardSettings(), [RewardSpec("tidy")], Limits())
    answer, failure = process.custom(0, ROW, ["a", ""])
    assert failure.detail.endswith("ZeroDivisionError: division by zero (inner.py:3, in tidy)")
    assert answer["tidy"] != os.getpid() and "tidy_package" not in sys.modules
    assert process.versions == {"tidy": hashlib.sha256((package / "inner.py").read_bytes()).hexdigest()}
    process.close()


def test_a_source_that_changes_under_a_run_stops_it_when_a_process_is_replaced(process_of, tmp_path):
    process = process_of("hostile")
    (tmp_path / "mine.py").write_text(HOSTILE + "\n# another reward\n")
    assert process.custom(0, ROW, ["one"]) == [{"hostile": 3.0}]  # the process has loaded the old one
    with pytest.raises(RewardContractError, match="has changed since the run began"):
        process.custom(0, ROW, ["_exit", "one"])
