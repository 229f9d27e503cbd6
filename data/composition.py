"""How many rows of each kind a split gets: a choice over the tables of all its scenes.

What holds
    * The choice is by rank, a hash of seed, scene and question: neither the order of the scenes nor who built them
      counts, and a scene more changes few of the rows of the others.
    * Of each modality the question types come in equal numbers; a type that the scenes cannot fill leaves its share to
      the others. Within a type answers come in turn (`data.balance.choose_balanced`).
    * Localisation is chosen like single-image questions, so that equal numbers of both are about the same questions.
    * Cold-start rows explain chosen rows only. Letters of the right answers are dealt anew, in equal shares, over the
      chosen rows, also where all are taken.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Iterable, Mapping, Sequence, get_args

from configs.data_schema import CompositionConfig
from data.balance import balance_letters, choose_balanced
from data.facts import Question
from data.reading import COLDSTART_FILE, GROUNDING_FILE, SPATIAL_FILE
from data.scene_tables import Row, SceneTable, coldstart_boxes
from data.types import QUESTION_TYPES, DataType


@dataclass(frozen=True)
class _Offer:
    """A row that a scene offers, and its question."""

    scene: str
    row: Row
    question: Question


@dataclass(frozen=True)
class Shortfall:
    """A kind of which the scenes gave fewer rows than asked for."""

    split: str
    kind: str
    wanted: int
    found: int


@dataclass(frozen=True)
class Choice:
    """Rows of a split by scene, in the order of the files, and the questions whose letters were dealt anew by
    (scene, number)."""

    rows: Mapping[str, Sequence[Row]]
    relettered: Mapping[tuple[str, int], Question]
    shortfalls: tuple[Shortfall, ...]


def choose(tables: Iterable[SceneTable], split: str, composition: CompositionConfig, seed: int) -> Choice:
    """The rows of `split` among those that `tables` offer; letters are dealt in the order of the tables."""
    offers: dict[str, list[_Offer]] = {GROUNDING_FILE: [], SPATIAL_FILE: []}
    rows: dict[str, list[Row]] = {}
    for table in tables:
        rows[table.scene] = []
        for row in table.rows:
            if row.split == split and row.file in offers:
                offers[row.file].append(_Offer(table.scene, row, table.questions[row.question]))
    wanted = composition.model_dump()
    chosen = {"localization": _of_types(offers[GROUNDING_FILE], composition.localization, seed)}
    for kind in get_args(DataType):
        chosen[kind] = _of_types([o for o in offers[SPATIAL_FILE] if o.question.data_type == kind], wanted[kind], seed)
    spatial = [offer for kind in get_args(DataType) for offer in chosen[kind]]
    chosen["coldstart"] = _explained(chosen["localization"], spatial, composition.coldstart, seed)
    for offer in (*chosen["localization"], *spatial, *chosen["coldstart"]):
        rows[offer.scene].append(offer.row)
    return Choice(rows, _dealt(spatial, seed),
                  tuple(Shortfall(split, kind, count, len(chosen[kind])) for kind, count in wanted.items()
                        if len(chosen[kind]) < count))


def take_all(tables: Iterable[SceneTable], split: str, seed: int) -> Choice:
    """All rows of `split` that `tables` offer; letters are dealt in the order of the tables."""
    rows: dict[str, list[Row]] = {}
    spatial: list[_Offer] = []
    for table in tables:
        own = rows[table.scene] = [row for row in table.rows if row.split == split]
        spatial += [_Offer(table.scene, row, table.questions[row.question]) for row in own if row.file == SPATIAL_FILE]
    return Choice(rows, _dealt(spatial, seed), ())


def shares(available: Mapping[str, int], total: int) -> dict[str, int]:
    """`total`, at most the sum of what is available, divided as equally as the available numbers allow."""
    given, left = {}, min(total, sum(available.values()))
    for place, kind in enumerate(sorted(available, key=available.__getitem__)):  # the scarcest first: others fill up for it
        given[kind] = min(available[kind], -(-left // (len(available) - place)))
        left -= given[kind]
    return given


def _dealt(spatial: Sequence[_Offer], seed: int) -> dict[tuple[str, int], Question]:
    anew = balance_letters([offer.question for offer in spatial], seed)
    return {(offer.scene, offer.row.question): question for offer, question in zip(spatial, anew)}


def _of_types(offers: Sequence[_Offer], total: int, seed: int) -> list[_Offer]:
    """Up to `total` of the offers of one modality, question types in equal numbers; they keep their order."""
    by_type = _typed(offers)
    taken: set[int] = set()
    for kind, quota in shares({kind: len(some) for kind, some in by_type.items()}, total).items():
        taken |= {id(question) for question in choose_balanced(_ranked(by_type[kind], seed), quota)}
    return [offer for offer in offers if id(offer.question) in taken]


def _explained(located: Sequence[_Offer], spatial: Sequence[_Offer], total: int, seed: int) -> list[_Offer]:
    """Up to `total` cold-start rows about chosen rows: a third ask for boxes, the rest for each question type in turn."""
    boxes = coldstart_boxes(total, len(located), len(spatial))
    by_type = _typed(spatial)
    taken = {id(question) for question in _ranked(located, seed)[:boxes]}
    rows = [offer for offer in located if id(offer.question) in taken]
    quotas = shares({kind: len(some) for kind, some in by_type.items()}, total - boxes)
    taken = {id(question) for kind, quota in quotas.items() for question in _ranked(by_type[kind], seed)[:quota]}
    rows += [offer for offer in spatial if id(offer.question) in taken]
    return [replace(offer, row=replace(offer.row, file=COLDSTART_FILE)) for offer in rows]


def _typed(offers: Sequence[_Offer]) -> dict[str, list[_Offer]]:
    found = {offer.question.question_type for offer in offers}
    return {kind: [o for o in offers if o.question.question_type == kind] for kind in QUESTION_TYPES if kind in found}


def _ranked(offers: Sequence[_Offer], seed: int) -> list[Question]:
    """Their questions by a hash of seed, scene and question."""
    def rank(offer: _Offer) -> bytes:
        return hashlib.sha256(json.dumps([seed, offer.scene, offer.question.key]).encode()).digest()

    return [offer.question for offer in sorted(offers, key=rank)]
