"""Questions about one picture, the localisation rows that ask for their objects, and how a scene's rows are chosen.

What holds
    * Everything is a pure function of scene, records, configuration and generator; objects are visited by id, so the
      order in which a source lists them changes nothing.
    * A question is asked only where its answer is safe: objects visible, large and whole enough
      (`ConstructionConfig`), labels that name one thing in the picture, nearest options that win by a gap, directions
      that keep a margin from a sector border, choices that stay the same when any one centre moves by `center_epsilon`.
    * Generators yield in random order and lazily; two wordings of one question share a `key` and only one is kept.

Scene-level questions (multi-view, video) are in `data.scene_questions`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import combinations
from typing import Iterable, Iterator, Mapping, Sequence, TypeVar

import numpy as np

from configs.data_schema import ConstructionConfig
from data.facts import GapFacts, NearestFacts, OffsetFacts, Question, SizeFacts, centimetres
from data.oriented import Boxed, closest_distance, shortest_vector
from data.records import ObjectRecord, unrecorded
from data.relations import camera_quadrant
from data.scenes.types import Axes, Scene
from data.templates import SINGLE_IMAGE, lettered, option_text
from data.types import LOCALIZATION, Box

SINGLE_IMAGE_TYPES = ("object size", "absolute distance", "relative distance", "relative direction")
CAMERA_DIRECTIONS = ("left-front", "left-back", "right-front", "right-back")

Item = TypeVar("Item")


def shuffled(items: Iterable[Item], rng: np.random.Generator) -> list[Item]:
    """The items in random order."""
    items = list(items)
    return [items[i] for i in rng.permutation(len(items))]


def confusable(a: str, b: str) -> bool:
    """Whether two labels may name the same thing: equal, or one says all words of the other (table, coffee table)."""
    first, second = set(a.lower().split()), set(b.lower().split())
    return first <= second or second <= first


def is_clear(record: ObjectRecord, config: ConstructionConfig) -> bool:
    """Whether the object shows well enough in this picture to ask about it."""
    return (record.visibility >= config.min_visible and record.area >= config.min_area
            and record.truncation <= config.max_truncation)


def askable(records: Sequence[ObjectRecord], config: ConstructionConfig,
            others: Sequence[str] = ()) -> list[ObjectRecord]:
    """Clear objects whose label fits nothing else that shows in the picture, however little; by id.

    `others` are the labels of what shows, or may, without a record (`data.records.unrecorded`).
    """
    shown = sorted((r for r in records if r.visibility > 0), key=lambda r: r.object_id)
    return [r for r in shown if is_clear(r, config)
            and not any(confusable(r.label, label) for label in others)
            and not any(confusable(r.label, other.label) for other in shown if other is not r)]


def integer_box(record: ObjectRecord) -> Box:
    """The 2-D box in integer pixels of the original picture: outward rounding, inside the picture."""
    (x1, y1, x2, y2), (width, height) = record.box2d, record.image_size
    low = max(int(np.floor(x1)), 0), max(int(np.floor(y1)), 0)
    high = min(int(np.ceil(x2)), width), min(int(np.ceil(y2)), height)
    return Box(record.label, (*low, *high))


def size_facts(label: str, dimensions: Sequence[float], axes: Axes) -> SizeFacts:
    """The height is the size along the axis that is nearest to upright."""
    upright = max(range(3), key=lambda i: abs(axes[i][2]))
    floor = [dimensions[i] for i in range(3) if i != upright]
    return SizeFacts(label, max(floor), min(floor), dimensions[upright])


def gap_facts(first: str, a: Boxed, second: str, b: Boxed) -> GapFacts:
    """Of the boxes of two labelled objects."""
    vector = shortest_vector(a, b)
    return GapFacts(first, second, tuple(abs(vector).tolist()), float(np.linalg.norm(vector)))


def nearest_gap(config: ConstructionConfig) -> float:
    """Metres by which the nearest must win. When a centre moves by epsilon, the difference of two distances moves by
    at most twice as much: once if it is a candidate's, twice if it is that of the object measured from."""
    return max(config.min_distance_gap, 2 * config.center_epsilon, 1e-9)


def single_image_questions(question_type: str, frame: str, records: Sequence[ObjectRecord],
                           config: ConstructionConfig, rng: np.random.Generator,
                           others: Sequence[str] = ()) -> Iterator[Question]:
    """Questions of one type about one picture, random order; `others` as in `askable`.

    ValueError for a type that one picture cannot ask.
    """
    if question_type not in SINGLE_IMAGE_TYPES:
        raise ValueError(f"{question_type!r} is no single-image question type; expected one of "
                         f"{', '.join(SINGLE_IMAGE_TYPES)}")
    objects = askable(records, config, others)
    make = {"object size": _sizes, "absolute distance": _distances, "relative distance": _nearest,
            "relative direction": _directions}[question_type]
    return make(frame, objects, config, rng)


def _question(kind: str, frame: str, text: str, answer: str, facts, asked: Sequence[ObjectRecord], key: tuple,
              options: tuple[str, ...] | None = None) -> Question:
    return Question("single_image", kind, text, (frame,), options, answer, facts, (kind, frame, *key),
                    tuple(integer_box(record) for record in asked))


def _sizes(frame, objects, config, rng) -> Iterator[Question]:
    for a in shuffled(objects, rng):
        yield _question("object size", frame, SINGLE_IMAGE["object size"].format(a=a.label),
                        str(centimetres(max(a.dimensions))), size_facts(a.label, a.dimensions, a.axes), [a],
                        (a.object_id,))


def _distances(frame, objects, config, rng) -> Iterator[Question]:
    for pair in shuffled(combinations(objects, 2), rng):
        a, b = shuffled(pair, rng)
        facts = gap_facts(a.label, a.box3d, b.label, b.box3d)
        if facts.distance < config.min_distance:
            continue
        yield _question("absolute distance", frame, SINGLE_IMAGE["absolute distance"].format(a=a.label, b=b.label),
                        f"{facts.distance:.1f}", facts, [a, b], tuple(r.object_id for r in pair))


def _nearest(frame, objects, config, rng) -> Iterator[Question]:
    choices = [(target, pair) for target in objects
               for pair in combinations([o for o in objects if o is not target], 2)]
    for target, pair in shuffled(choices, rng):
        distances = {r.label: closest_distance(target.box3d, r.box3d) for r in pair}
        near, far = sorted(pair, key=lambda r: distances[r.label])
        if distances[far.label] - distances[near.label] < nearest_gap(config):
            continue
        options, letter = lettered([r.label for r in pair], near.label, rng)
        a, b = map(option_text, options)
        text = SINGLE_IMAGE["relative distance"].format(a=a, b=b, target=target.label)
        facts = NearestFacts(target.label, ((a, distances[a]), (b, distances[b])), near.label)
        asked = sorted(pair, key=lambda r: (a, b).index(r.label)) + [target]
        yield _question("relative distance", frame, text, letter, facts, asked,
                        (target.object_id, *(r.object_id for r in pair)), options)


def _directions(frame, objects, config, rng) -> Iterator[Question]:
    for pair in shuffled(combinations(objects, 2), rng):
        a, b = shuffled(pair, rng)
        right, forward = a.center_camera[0] - b.center_camera[0], a.center_camera[2] - b.center_camera[2]
        direction = camera_quadrant(right, forward, config.direction_margin)
        if direction is None or np.hypot(right, forward) < config.min_distance_gap:
            continue
        if min(abs(right), abs(forward)) <= config.center_epsilon:
            continue
        options, letter = lettered(CAMERA_DIRECTIONS, direction, rng)
        yield _question("relative direction", frame, SINGLE_IMAGE["relative direction"].format(a=a.label, b=b.label),
                        letter, OffsetFacts(a.label, b.label, right, forward, direction), [a, b],
                        tuple(r.object_id for r in pair), options)


# Choosing rows ----------------------------------------------------------------------------------------------------


def take_turns(sources: Sequence[Iterator[Question]], quota: int, taken: set) -> list[Question]:
    """Up to `quota` questions, one from each source in turn; exhausted sources drop out, keys in `taken` are skipped.

    Adds the keys of what it returns to `taken`.
    """
    waiting, chosen = deque(sources), []
    while waiting and len(chosen) < quota:
        source = waiting.popleft()
        question = next((q for q in source if q.key not in taken), None)
        if question is not None:
            taken.add(question.key)
            chosen.append(question)
            waiting.append(source)
    return chosen


def round_robin(sources: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """One item of each source in turn until all are exhausted."""
    waiting = deque(sources)
    while waiting:
        source = waiting.popleft()
        for item in source:
            yield item
            waiting.append(source)
            break


def single_image_rows(scene: Scene, records: Mapping[str, Sequence[ObjectRecord]], quota: int,
                      config: ConstructionConfig, rng: np.random.Generator) -> list[Question]:
    """Up to `quota` different single-image questions, types and pictures in turn. `records` maps frame names."""
    others = {frame.name: [item.label for item in unrecorded(scene, frame, records[frame.name], config)]
              for frame in scene.frames}
    sources = []
    for kind in shuffled(SINGLE_IMAGE_TYPES, rng):
        frames = shuffled([frame.name for frame in scene.frames], rng)
        sources.append(round_robin([single_image_questions(kind, f, records[f], config, rng, others[f]) for f in frames]))
    return take_turns(sources, quota, set())


def localization_rows(questions: Sequence[Question], quota: int) -> list[Question]:
    """The first `quota` single-image questions, asked for the boxes of the objects they mention (1 to 3)."""
    return [replace(q, question_type=LOCALIZATION, options=None, answer=None, key=(LOCALIZATION, *q.key))
            for q in questions[:quota]]
