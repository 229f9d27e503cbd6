"""Drafts on disk and how they are drawn: resumed, in order, with a budget of failures, and never waiting for ever."""

import asyncio
import json
import random

import pytest

from data import trace_sampling
from data.trace_drafts import DRAFTS, Draft, TraceError, TracesRefused, opened
from data.trace_sampling import DrawFailed, Writer, draw_drafts

ROWS = [f"r/{index}" for index in range(9)]
WITH = {"model": "m", "seed": 0}


def text(row, sample):
    return f"{row} says {sample}\r\u2028\ud83d"  # a server may send the half of a character


def writer(draw, pulse=lambda: 0, per_request=1, in_flight=3, silence_seconds=20.0, failures=0):
    async def beat():
        return pulse()

    return Writer(draw, beat, per_request, in_flight, silence_seconds, failures)


def scripted(asked=None, delay=lambda row: 0.0, fails=()):
    """A writer's `draw`: texts that row and number decide, after a while."""
    running = {"now": 0, "most": 0}

    async def draw(row, first, count):
        running["now"] += 1
        running["most"] = max(running["most"], running["now"])
        await asyncio.sleep(delay(row))
        running["now"] -= 1
        if row in fails:
            raise DrawFailed("the server is tired")
        if asked is not None:
            asked.append((row, first, count))
        return [Draft(row, first + index, text(row, first + index), "stop", 3) for index in range(count)]

    draw.running = running
    return draw


def drawn(folder, own, rows=ROWS, samples=4, enough=lambda drafts, row: False, say=lambda line: None):
    with opened(folder, WITH) as drafts:
        failed = asyncio.run(draw_drafts(rows, drafts, own, samples, lambda row: enough(drafts, row), say))
        return failed, {row: drafts.of(row) for row in rows}


def test_every_row_gets_its_drafts_whatever_comes_first(tmp_path):
    dice = random.Random(0)
    draw = scripted(delay=lambda row: dice.uniform(0, 0.003))
    failed, all_drafts = drawn(tmp_path, writer(draw))
    assert failed == 0 and draw.running["most"] == 3
    assert all([own.text for own in all_drafts[row]] == [text(row, sample) for sample in range(4)] for row in ROWS)
    lines = [json.loads(line) for line in (tmp_path / DRAFTS).read_text().splitlines()]
    assert sorted((line["row"], line["sample"]) for line in lines) == [(row, sample) for row in ROWS for sample in range(4)]


def test_a_row_that_has_enough_is_asked_no_more(tmp_path):
    asked = []
    _, drafts = drawn(tmp_path, writer(scripted(asked)), enough=lambda drafts, row: len(drafts.of(row)) >= 1 + (row == "r/3"))
    assert {row: len(own) for row, own in drafts.items()} == {row: 1 + (row == "r/3") for row in ROWS}
    assert len(asked) == len(ROWS) + 1


def test_a_second_start_draws_what_is_missing(tmp_path):
    drawn(tmp_path, writer(scripted()), rows=ROWS[:4], samples=2)
    whole = (tmp_path / DRAFTS).read_bytes()
    (tmp_path / DRAFTS).write_bytes(whole + b'{"row": "r/0", "sample": 2, "te')  # cut by a crash
    asked = []
    drawn(tmp_path, writer(scripted(asked), per_request=4), samples=4)
    assert sorted(asked) == [(row, 2, 2) if row in ROWS[:4] else (row, 0, 4) for row in ROWS]
    assert (tmp_path / DRAFTS).read_bytes().startswith(whole)
    asked.clear()
    drawn(tmp_path, writer(scripted(asked)))
    assert asked == []


def test_other_settings_a_second_process_and_an_edited_file_are_refused(tmp_path):
    with opened(tmp_path, WITH) as drafts:
        drafts.append([Draft("r/0", 0, "a", "stop")])
        with pytest.raises(TracesRefused, match="another process draws"), opened(tmp_path, WITH):
            pass
        with pytest.raises(TraceError, match="draft 2 of row r/0 follows 1"):
            drafts.append([Draft("r/0", 2, "a", "stop")])
    with pytest.raises(TracesRefused, match=r"seed: 0 -> 1\n.*choose another --out"), opened(tmp_path, WITH | {"seed": 1}):
        pass
    with pytest.raises(TracesRefused, match="cannot be written .*choose another"), opened(tmp_path / DRAFTS / "in", WITH):
        pass
    (tmp_path / DRAFTS).write_text('{"row": "r/0"}\n')
    with pytest.raises(TraceError, match="line 1: no draft"), opened(tmp_path, WITH):
        pass


def test_failed_rows_wait_for_the_next_start(tmp_path):
    failed, drafts = drawn(tmp_path, writer(scripted(fails=("r/2", "r/7")), failures=2))
    assert failed == 2 and [row for row in ROWS if not drafts[row]] == ["r/2", "r/7"]
    failed, drafts = drawn(tmp_path, writer(scripted()))
    assert failed == 0 and all(len(own) == 4 for own in drafts.values())


def test_more_failures_than_allowed_end_the_command_with_the_last_reason(tmp_path):
    with pytest.raises(TraceError, match="3 requests failed, 2 may; the last, of row r/.: the server is tired"):
        drawn(tmp_path, writer(scripted(fails=ROWS), failures=2))


def test_silence_ends_the_command_and_movement_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_sampling, "LOOK_SECONDS", 0.02)
    with pytest.raises(TraceError, match="nothing has come for 0.1 s; 2 requests wait, among them row r/0"):
        drawn(tmp_path / "still", writer(scripted(delay=lambda row: 60.0), silence_seconds=0.1), rows=ROWS[:2])
    beats = iter(range(10_000))
    own = writer(scripted(delay=lambda row: 0.5), pulse=lambda: next(beats), silence_seconds=0.1, per_request=4)
    _, drafts = drawn(tmp_path / "moves", own, rows=ROWS[:2])
    assert [len(one) for one in drafts.values()] == [4, 4]


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_sampling, "PROGRESS_SECONDS", 0.0)
    said = []
    drawn(tmp_path, writer(scripted(fails=("r/8",)), failures=1), say=said.append)
    assert said[-1] == "traces: 8/9 rows, 32 drafts, 1 failed"
