"""`ladder data card`: what is in a data folder, for people (Markdown and a contact sheet) and for programs (JSON).

What holds: rows are read strictly, the first bad one refuses the card (`ladder data check` lists all). The text-only
answerers learn from train/ and answer heldout/; a folder without evaluation rows is divided into five parts by place, each
answered by what was learned from the other four. The files of a card are a function of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data import card
from data.checking import split_folders
from data.joining import Joined, join_boxes
from data.leakage import scenes_of, shared_places
from data.reading import FILES, MANIFEST, DataError, Split, picture_folder, read_rows
from data.stage_files import write_text
from data.types import HELDOUT, SPLITS, TRAIN, Example
from launch.data_check import DataRefused
from launch.progress import Say

PAGE, NUMBERS, SHEET = "card.md", "card.json", "pictures.jpg"
SHOWN_PICTURES = 12
#: Sizes of pictures that are listed.
LISTED = 8


@dataclass(frozen=True)
class Folder:
    """A data folder that was read: splits by name, where the pictures of each begin, and what the rows were made of."""

    path: Path
    splits: Mapping[str, Split]
    roots: Mapping[str, Path]
    source: str

    @property
    def rows(self) -> tuple[Example, ...]:
        return tuple(row for split in self.splits.values() for row in split.examples)


def write_card(folder: Path, out: Path, say: Say) -> Path:
    """Writes card.md, card.json and pictures.jpg into `out`; returns the page.

    DataRefused for a folder that cannot be read, or one that cannot be written.
    """
    from data.card_pictures import contact_sheet

    read = read_folder(folder)
    say(f"{len(read.rows)} rows read; looking at the pictures and what text alone gives away")
    shown = _shown(read)
    numbers = contents(read)
    try:
        out.mkdir(parents=True, exist_ok=True)
        contact_sheet(shown).save(out / SHEET, quality=85)
        write_text(out / NUMBERS, json.dumps(numbers, indent=1) + "\n")
        write_text(out / PAGE, "\n".join(page(numbers, shown)) + "\n")
    except OSError as error:
        raise DataRefused(f"the card cannot be written into {out} ({error}); give another folder with --out") from None
    return out / PAGE


def read_folder(folder: Path) -> Folder:
    """Reads all splits strictly. DataRefused."""
    try:
        folders = split_folders(folder)
        splits = {name: Split(*(tuple(read_rows(own.parent, file, own.name)) for file in FILES))
                  for name, own in folders.items()}
    except DataError as error:
        raise DataRefused(f"{error}\n`ladder data check {folder}` lists everything") from None
    if not any(split.examples for split in splits.values()):
        raise DataRefused(f"{folder} holds no rows: there is nothing to tell")
    manifest = folder / MANIFEST
    try:
        source = json.loads(manifest.read_text(encoding="utf-8")).get("source") if manifest.is_file() else None
    except (ValueError, AttributeError):
        raise DataRefused(f"{manifest} is no JSON object; build the folder again, or remove the manifest") from None
    roots = {name: picture_folder(own) for name, own in folders.items()}
    return Folder(folder, splits, roots, str(source or card.UNKNOWN))


def contents(read: Folder) -> dict:
    """Everything the card says, as plain JSON data."""
    from evaluation.text_only import text_only_scores

    scenes = {name: scenes_of(split.examples, read.roots[name]) for name, split in read.splits.items()}
    joined = {name: join_boxes(split.spatial, split.grounding) for name, split in read.splits.items()}
    sizes, broken = card.picture_sizes(read.rows)
    train, *measured = read.splits
    leaked = {place for name in measured for place in shared_places(scenes[train], scenes[name])}
    questions = [row for split in read.splits.values() for row in split.spatial]
    return {
        "folder": read.path.absolute().name,
        "source": read.source,
        "splits": list(read.splits),
        "rows": {name: len(split.examples) for name, split in read.splits.items()},
        "categories": [{"category": name, **_paper(name), **counts}
                       for name, counts in card.categories(read.splits).items()],
        "question_types": [{"data_type": kind[0], "question_type": kind[1], **counts}
                           for kind, counts in card.question_types(read.splits).items()],
        "scenes": {name: len(own) for name, own in scenes.items()},
        "places_in_both": sorted(leaked),
        "pictures": sum(count for _, count in sizes) + broken,
        "pictures_unreadable": broken,
        "picture_sizes": [{"size": size, "pictures": count} for size, count in sizes],
        "pictures_per_row": card.pictures_per_row(questions),
        "joined": {name: _join(own) for name, own in joined.items()},
        "letters": [{**asdict(own), "balanced": own.balanced} for own in card.letter_balance(questions)],
        "text_only": {"how": _how(read), "scores": [asdict(score) for score in text_only_scores(_parts(read))]},
        "licences": list(card.licences(read.source)),
    }


def _paper(name: str) -> dict[str, int | None]:
    counts = {category: {"paper": paper, "released": released} for category, paper, released in card.PAPER}
    return counts.get(name, {"paper": None, "released": None})


def _join(joined: Joined) -> dict:
    return {"single_image": joined.single_image, "matched": joined.matched, "contradicted": joined.contradicted}


def _how(read: Folder) -> str:
    if tuple(read.splits) == SPLITS and read.splits[HELDOUT].spatial:
        return "learned from train/, asked heldout/"
    return f"no rows to be measured on: {card.PARTS} parts by place, each asked by what was learned from the others"


def _parts(read: Folder) -> list[tuple[Sequence[Example], Sequence[Example]]]:
    if tuple(read.splits) == SPLITS and read.splits[HELDOUT].spatial:
        return [(read.splits[TRAIN].spatial, read.splits[HELDOUT].spatial)]
    name = next(iter(read.splits))
    parts = card.by_place(read.splits[name].spatial, read.roots[name])
    return [([row for other in parts if other is not own for row in other], own) for own in parts]


def _shown(read: Folder) -> list[Example]:
    name, split = next((name, split) for name, split in read.splits.items() if split.examples)  # `read_folder`: there is one
    return card.shown_rows(split.grounding or split.spatial or split.coldstart, read.roots[name], SHOWN_PICTURES)


# The page ---------------------------------------------------------------------------------------------------------


def page(numbers: Mapping, shown: Sequence[Example]) -> Iterator[str]:
    """The lines of card.md."""
    splits = numbers["splits"]
    yield f"# {numbers['folder']}"
    yield f"\nSource: {numbers['source']}. Rows: {_counts(numbers['rows'])}."
    yield "\n## Composition\n\nBeside it the table of the paper, and what its authors released.\n"
    for head, names, rows in (
        (["category", *splits, "paper", "released"], ["category", *splits, "paper", "released"], numbers["categories"]),
        (["modality", "question type", *splits], ["data_type", "question_type", *splits], numbers["question_types"]),
    ):
        yield from _table(head, [["not told" if own[name] is None else own[name] for name in names] for own in rows])
        yield ""
    yield _scenes(numbers)
    for name, own in numbers["joined"].items():
        told = f"{own['matched']} of {own['single_image']} single-image questions have the boxes of a localisation row"
        contradicted = f"; {own['contradicted']} have two that contradict one another" if own["contradicted"] else ""
        yield f"\n{name}: {told}{contradicted}."
    yield from _pictures(numbers, shown)
    yield from _letters(numbers["letters"])
    yield from _text_only(numbers["text_only"])
    yield "\n## Licences\n"
    yield from (f"* {note}" for note in numbers["licences"])


def _scenes(numbers: Mapping) -> str:
    counts = _counts(numbers["scenes"])
    if len(numbers["splits"]) < 2:
        return f"Scenes: {counts}."
    shared = numbers["places_in_both"]
    if not shared:
        return f"Scenes: {counts}; no place is in both splits."
    named = ", ".join(shared[:LISTED])
    return (f"Scenes: {counts}. **Places in both splits: {len(shared)}** ({named}): what is measured on the "
            "evaluation rows says nothing about new places.")


def _counts(by_split: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in by_split.items())


def _pictures(numbers: Mapping, shown: Sequence[Example]) -> Iterator[str]:
    yield f"\n## Pictures\n\n{numbers['pictures']} pictures" + (
        f", **{numbers['pictures_unreadable']} of them missing or unreadable** (`ladder data check` lists them)."
        if numbers["pictures_unreadable"] else ".")
    sizes = numbers["picture_sizes"]
    yield ""
    yield from _table(["size", "pictures"], [[own["size"], own["pictures"]] for own in sizes[:LISTED]])
    if len(sizes) > LISTED:
        yield f"\nand {len(sizes) - LISTED} other sizes."
    yield ""
    yield from _table(["modality", "fewest pictures of a row", "median", "most"],
                      [[kind, own[0], f"{own[1]:g}", own[2]] for kind, own in numbers["pictures_per_row"].items()])
    yield f"\n![pictures of rows]({SHEET})\n"
    yield from (f"{number}. `{row.id}` {_one_line(row)}" for number, row in enumerate(shown, start=1))


def _one_line(row: Example) -> str:
    said = [row.question, *(row.options or ()), f"= {row.answer}" if row.answer else ""]
    return " ".join(" ".join(said).replace("|", "\\|").split())


def _rows(count: int) -> str:
    """A number of rows, marked where it is too small for a table to be judged by it."""
    from evaluation.text_only import FEWEST_ROWS

    return str(count) if count >= FEWEST_ROWS else f"{count} (too few)"


def _letters(letters: Sequence[Mapping]) -> Iterator[str]:
    from evaluation.text_only import FEWEST_ROWS

    yield "\n## Answer letters\n"
    if not letters:
        yield "No multiple choice."
        return
    yield from _table(
        ["question type", "options", "rows", "letters", "largest distance from uniform", "two standard errors"],
        [[own["question_type"], own["options"], _rows(sum(own["counts"])),
          " ".join(f"{chr(ord('A') + i)} {n}" for i, n in enumerate(own["counts"])),
          _points(own), f"{100 * own['two_errors']:.1f}"] for own in letters])
    if any(_tells_bias(own) for own in letters):
        yield (f"\n**Bold**: more than {100 * card.LETTER_TOLERANCE:g} points, of at least {FEWEST_ROWS} rows. Beyond two "
               "standard errors it is hardly luck; within them it may be.")
    if any(sum(own["counts"]) < FEWEST_ROWS for own in letters):
        yield f"\nToo few: fewer than {FEWEST_ROWS} rows, whose letters say nothing."


def _points(letters: Mapping) -> str:
    text = f"{100 * letters['deviation']:.1f} points"
    return f"**{text}**" if _tells_bias(letters) else text


def _tells_bias(letters: Mapping) -> bool:
    from evaluation.text_only import FEWEST_ROWS

    return not letters["balanced"] and sum(letters["counts"]) >= FEWEST_ROWS


def _text_only(text_only: Mapping) -> Iterator[str]:
    from evaluation.text_only import CHOICE_ANSWERERS, FEWEST_ROWS, NUMBER_ANSWERERS

    scores = text_only["scores"]
    yield "\n## What text alone gives away\n"
    yield (f"Accuracy of answerers that see no picture ({text_only['how']}). Chance is one over the number of options, or "
           "the score of the most frequent training answer where a number is asked. **Bold**: clearly above chance (more "
           f"than three standard errors, at least {FEWEST_ROWS} rows).")
    for answerers in (CHOICE_ANSWERERS, NUMBER_ANSWERERS):
        own = [score for score in scores if score["scores"].keys() == answerers.keys()]
        if own:
            yield ""
            yield from _table(["modality", "question type", "rows", "chance", *answerers],
                              [[score["data_type"], score["question_type"], _rows(score["scored"]), f"{score['chance']:.3f}",
                                *(_score(score, name) for name in answerers)] for score in own])
    yield ""
    yield from _verdict(scores)


def _verdict(scores: Sequence[Mapping]) -> Iterator[str]:
    from evaluation.text_only import FEWEST_ROWS

    few = [own for own in scores if own["scored"] < FEWEST_ROWS]
    above = [own for own in scores if own["above"]]
    for own in above:
        best = max(own["above"], key=lambda name: own["scores"][name])
        yield (f"* {own['data_type']}, {own['question_type']}: text alone is clearly above chance ({best}: "
               f"{own['scores'][best]:.3f}, chance {own['chance']:.3f}). Only what a model scores beyond that comes from "
               "looking.")
    if not scores:
        yield "* No kind of question has both rows to learn from and rows to answer."
    elif len(above) + len(few) < len(scores):
        rest = len(scores) - len(above) - sum(not own["above"] for own in few)
        yield f"* In {'the other ' if above else 'all '}{rest} kinds with enough rows, no answerer is clearly above chance."
    if few:
        yield f"* {len(few)} kinds have fewer than {FEWEST_ROWS} rows to answer: too few to say."


def _score(score: Mapping, name: str) -> str:
    text = f"{score['scores'][name]:.3f}"
    return f"**{text}**" if name in score["above"] else text


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(map(str, head)) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
