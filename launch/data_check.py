"""`ladder data check`: is a data folder fit to train on and to be measured with?

What holds: everything found is told, each with file, line, field and what to do, at most `limit` of a kind; exit code 0
when there is no fault, 1 when there is one, 2 (`DataRefused`) when there is nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from data.checking import Checked, Finding, check_folder
from data.reading import DataError
from launch.progress import Say

#: Of JSON and CSV, which would match no scene and so find nothing.
_NOT_IN_IDS = frozenset(",;\"'[]{}")


class DataRefused(RuntimeError):
    """A command about data that cannot begin: says why and what to do."""


def check(folder: Path, against: Path | None, limit: int, say: Say, tell: Callable[[str], None] = print) -> int:
    """Checks `folder` and tells the report; 0 or 1. `against`: a text file with one scene id per line."""
    if limit < 0:
        raise DataRefused(f"--limit {limit}: must be 0 (tell everything) or more")
    others = scene_ids(against) if against else frozenset()
    try:
        checked = check_folder(folder, others, say)
    except DataError as error:
        raise DataRefused(str(error)) from None
    if others:
        tell(f"other scenes: {len(others)} of {against}, the first is {min(others)}")
    tell("\n".join(report(checked, limit)))
    return 1 if checked.faults else 0


def scene_ids(file: Path) -> frozenset[str]:
    """The words that begin the lines of a file, `#` lines left out. DataRefused when it cannot be read, or is no such list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataRefused(f"--against {file}: cannot be read ({error}); give one scene id per line as text") from None
    scenes = frozenset(line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not scenes:
        raise DataRefused(f"--against {file}: no scene id in it; give one per line")
    if strange := sorted(scene for scene in scenes if set(scene) & _NOT_IN_IDS):
        raise DataRefused(f"--against {file}: {strange[0]!r} is no scene id; give one per line as text, no JSON or CSV")
    return scenes


def report(checked: Checked, limit: int) -> Iterator[str]:
    """The lines of the report."""
    for split in checked.splits:
        counts = ", ".join(f"{count} in {name}" for name, count in split.counts.items())
        yield f"{split.folder}: {counts or 'no rows'}"
    yield _pictures(checked)
    for name, joined in checked.joined().items():
        yield f"{name}: {joined}"
    for title, fault in (("fault", True), ("remark", False)):
        chosen = [finding for finding in checked.findings if finding.fault == fault]
        if chosen:
            yield f"\n{len(chosen)} {title}{'s' if len(chosen) > 1 else ''}:"
            yield from _listed(chosen, limit)
    yield "\ncorrect the faults before anything is trained on this or measured with it" if checked.faults else "\nno fault"


def _pictures(checked: Checked) -> str:
    """Every picture that rows show is counted once here: as usable, or by what is wrong with it."""
    total, undecoded, small = len(checked.sizes), checked.undecoded, checked.too_small
    if not undecoded + small:
        return f"{total} pictures, all can be used"
    parts = ((total - undecoded - small, "can be used"), (undecoded, "missing or not decodable"),
             (small, "with a box outside"))
    return f"{total} pictures: " + ", ".join(f"{count} {what}" for count, what in parts if count)


def _listed(findings: Sequence[Finding], limit: int) -> Iterator[str]:
    """At most `limit` of every kind in every file; what to do stands once for neighbours that need the same."""
    for _, group in groupby(findings, key=lambda finding: (finding.kind, finding.file)):
        own = list(group)
        shown = own[:limit] if limit else own
        for remedy, alike in groupby(shown, key=lambda finding: finding.remedy):
            yield from (f"  {finding}" for finding in alike)
            yield f"      -> {remedy}"
        if len(own) > len(shown):
            yield f"  and {len(own) - len(shown)} more of this kind (--limit 0 tells all)"
