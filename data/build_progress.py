"""What a build says: while it runs scenes done, rows so far, rate, time left, and every scene that is left out; at the end
what is written."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence, get_args

from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE
from data.scene_build import SceneOutcome
from data.types import DataType

Say = Callable[[str], None]
#: How `split` of a manifest calls a build of one place, whose questions were divided.
ONE_PLACE = "by row; one place only"
#: Seconds between two lines.
_PAUSE = 3.0


class BuildProgress:
    """Lines about scenes: at most one every few seconds, always the last, and at once what is left out.

    `finished` of `total` scenes were built before. The rate counts from the first scene that is done, not from the start of
    the processes.
    """

    def __init__(self, total: int, finished: int, say: Say):
        self._say = say
        self._total, self._before, self._done, self._rows = total, finished, 0, 0
        self._seconds: Counter[str] = Counter()
        self._start = self._said = time.monotonic()
        self._first: float | None = None
        if finished:
            self._say(f"data: {finished} of {total} scenes were finished before, {total - finished} are left")

    def scene(self, outcome: SceneOutcome) -> None:
        """One scene more is done, or left out."""
        self._done += 1
        self._rows += outcome.rows
        self._seconds.update(outcome.seconds)
        if outcome.reason is not None:
            self._say(f"data: scene {outcome.scene} is left out: {outcome.reason}")
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._said >= _PAUSE:
            self._said = now
            rate = (self._done - 1) / (now - self._first)
            left = (self._total - self._before - self._done) / rate
            self._say(f"{self._line()}, {rate:.1f} scenes/s, {_duration(left)} left")

    def end(self, skipped: Sequence[SceneOutcome]) -> None:
        """The last line, what the time went into, and all scenes that are left out as a table."""
        seconds, work = time.monotonic() - self._start, sum(self._seconds.values())
        self._say(f"{self._line()}, {_duration(seconds)}")
        if work:
            parts = ", ".join(f"{kind} {own / work:.0%}" for kind, own in self._seconds.most_common())
            self._say(f"data: {_duration(work)} of work: {parts}")
        if skipped:
            width = max(len(outcome.scene) for outcome in skipped)
            lines = [f"  {outcome.scene:{width}}  {outcome.reason}" for outcome in skipped]
            self._say("\n".join([f"data: {len(skipped)} of {self._total} scenes are left out:", *lines]))

    def _line(self) -> str:
        of_these = f" by the {self._done} built now" if self._before else ""
        return f"data: {self._before + self._done}/{self._total} scenes, {self._rows} rows offered{of_these}"


def written_lines(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the rows of a new folder cannot do, if anything, and last how many rows of what each split has."""
    counts = manifest["counts"]
    if manifest["split"] == ONE_PLACE:
        yield ("data: WARNING: the source shows one place only, so its questions were divided and no place is held out: "
               "what is measured on heldout/ says nothing about new places. Give scenes of two places or more")
    for split, own in counts.items():
        if not any(own["rows"].values()):
            yield f"data: WARNING: {split}/ has no rows: give more scenes, or higher quotas (data.construction)"
    yield f"data: {folder} is written: " + "; ".join(f"{split}: {_rows(own)}" for split, own in counts.items())


def _rows(counts: Mapping[str, Any]) -> str:
    asked: Counter[str] = Counter()
    for kind, count in counts["question_types"][SPATIAL_FILE].items():
        asked[kind.partition(":")[0]] += count
    kinds = {"localization": counts["rows"][GROUNDING_FILE], **{kind: asked[kind] for kind in get_args(DataType)},
             "coldstart": counts["rows"][COLDSTART_FILE]}
    return f"{sum(kinds.values())} rows ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
