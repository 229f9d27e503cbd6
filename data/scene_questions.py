"""Questions about a scene seen through several pictures: multi-view and video rows.

What holds
    * An object may be asked about only if some picture of the row shows it clearly; a label must name one thing in the
      whole scene, not only in the pictures, unless the question is about a category, and then every instance of it
      must have been shown.
    * "First seen" is the picture that first shows an object clearly. Appearance order is asked only where the order by
      the first faint glimpse (`glimpse_share`) is the same, and not of a category that may show before,
      without a record (`data.records.unrecorded`).
    * Room size is asked only where the scene knows its room: the floor's area as the source has it, or the product of the
      room's sides.
    * Choices stay the same when any one centre moves by `center_epsilon`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Iterator, Mapping, Sequence

import numpy as np

from configs.data_schema import ConstructionConfig
from data.facts import AreaFacts, CountFacts, NearestFacts, OrderFacts, Question, RoomFacts, TurnFacts, centimetres
from data.oriented import closest_distance
from data.questions import (
    confusable, gap_facts, is_clear, nearest_gap, round_robin, shuffled, size_facts, take_turns,
)
from data.records import ObjectRecord, unrecorded
from data.relations import Level, floor_distance, sector_names, swing, turn_angle, turn_sector
from data.scenes.types import Scene, SceneObject
from data.templates import DIRECTION, SCENE, SEVERAL_INSTANCES, lettered, option_text
from data.types import QUESTION_TYPES, DataType

MULTI_VIEW_TYPES = ("object size", "absolute distance", "relative distance", "relative direction", "object count")
VIDEO_TYPES = QUESTION_TYPES
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")
MAX_OPTIONS = 4
#: Fewest categories whose order of appearance is asked.
MIN_APPEARANCES = 3


@dataclass(frozen=True)
class SceneView:
    """A scene through chosen pictures.

    `objects` by id. `clear` and `glimpsed` map object ids to the first picture, counted from 1, that shows them
    clearly, or shows them at all, `unrecorded` maps to the first that shows them, or may, without a record; ids of
    objects that no picture shows so are missing. `room` is what is known of the floor.
    """

    objects: tuple[SceneObject, ...]
    frames: tuple[str, ...]
    clear: Mapping[int, int]
    glimpsed: Mapping[int, int]
    unrecorded: Mapping[int, int]
    room: RoomFacts | AreaFacts | None

    def only_one(self) -> list[SceneObject]:
        """Clearly shown objects whose label fits nothing else in the scene."""
        return [o for o in self.objects if o.id in self.clear
                and not any(confusable(o.label, other.label) for other in self.objects if other is not o)]

    def categories(self) -> dict[str, list[SceneObject]]:
        """Categories all of whose instances are clearly shown and that no other category is confusable with."""
        groups: dict[str, list[SceneObject]] = {}
        for item in self.objects:
            groups.setdefault(item.label, []).append(item)
        return {label: groups[label] for label in sorted(groups)
                if all(item.id in self.clear for item in groups[label])
                and not any(confusable(label, other) for other in groups if other != label)}


def view_scene(scene: Scene, frames: Sequence[str], records: Mapping[str, Sequence[ObjectRecord]],
               config: ConstructionConfig) -> SceneView:
    """What the pictures `frames`, in this order, show of the scene."""
    clear: dict[int, int] = {}
    glimpsed: dict[int, int] = {}
    without: dict[int, int] = {}
    by_name = {frame.name: frame for frame in scene.frames}
    for number, frame in enumerate(frames, start=1):
        for record in records[frame]:
            if is_clear(record, config):
                clear.setdefault(record.object_id, number)
            share = config.glimpse_share
            if record.visibility >= config.min_visible * share and record.area >= config.min_area * share:
                glimpsed.setdefault(record.object_id, number)
        for item in unrecorded(scene, by_name[frame], records[frame], config):
            without.setdefault(item.id, number)
    objects = tuple(sorted(scene.objects, key=lambda item: item.id))
    return SceneView(objects, tuple(frames), clear, glimpsed, without, _shown_floor(scene, config))


def floor(scene: Scene) -> RoomFacts | AreaFacts | None:
    """What the scene knows of its floor: its own area, or the sides of a rectangle; None if nothing."""
    if scene.room_area is not None:
        return AreaFacts(scene.room_area)
    if scene.room is None:
        return None
    return RoomFacts(*sorted((abs(scene.room[1][i] - scene.room[0][i]) for i in (0, 1)), reverse=True))


def _shown_floor(scene: Scene, config: ConstructionConfig) -> RoomFacts | AreaFacts | None:
    """None also where pictures are drawn within walls that enclose another area than the scene has."""
    known = floor(scene)
    if isinstance(known, AreaFacts) and scene.room is not None and any(frame.image is None for frame in scene.frames):
        drawn = abs((scene.room[1][0] - scene.room[0][0]) * (scene.room[1][1] - scene.room[0][1]))
        return known if abs(drawn - known.area) <= config.floor_tolerance * known.area else None
    return known


def covering_frames(scene: Scene, records: Mapping[str, Sequence[ObjectRecord]], count: int,
                    config: ConstructionConfig, rng: np.random.Generator) -> tuple[str, ...]:
    """Up to `count` frame names in temporal order: greedily those that show most new objects, then random ones."""
    names = [frame.name for frame in scene.frames]
    shows = {name: {r.object_id for r in records[name] if is_clear(r, config)} for name in names}
    left, chosen, covered = shuffled(names, rng), set(), set()
    while left and len(chosen) < count:
        best = max(left, key=lambda name: len(shows[name] - covered))
        left.remove(best)
        chosen.add(best)
        covered |= shows[best]
    return tuple(name for name in names if name in chosen)


def video_frames(scene: Scene, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Up to `count` evenly spaced frame names in temporal order, an even number; empty for fewer than two frames."""
    names = [frame.name for frame in scene.frames]
    count = min(count, len(names)) // 2 * 2
    if count < 2:
        return ()
    step = (len(names) - 1) // (count - 1)
    start = int(rng.integers(len(names) - step * (count - 1)))
    return tuple(names[start + step * i] for i in range(count))


def multi_view_rows(scene: Scene, records: Mapping[str, Sequence[ObjectRecord]], views: int, quota: int,
                    config: ConstructionConfig, rng: np.random.Generator) -> list[Question]:
    """Up to `quota` different questions about `views` pictures that together cover the objects; types in turn."""
    frames = covering_frames(scene, records, views, config, rng)
    if len(frames) < 2:
        return []
    return _rows("multi_view", MULTI_VIEW_TYPES, view_scene(scene, frames, records, config), quota, config, rng)


def video_rows(scene: Scene, records: Mapping[str, Sequence[ObjectRecord]], count: int, quota: int,
               config: ConstructionConfig, rng: np.random.Generator) -> list[Question]:
    """Up to `quota` different questions about `count` frames in temporal order; types in turn."""
    frames = video_frames(scene, count, rng)
    if not frames:
        return []
    return _rows("video", VIDEO_TYPES, view_scene(scene, frames, records, config), quota, config, rng)


def _rows(data_type: DataType, kinds: Sequence[str], view: SceneView, quota: int, config: ConstructionConfig,
          rng: np.random.Generator) -> list[Question]:
    sources = [scene_questions(data_type, kind, view, config, rng) for kind in shuffled(kinds, rng)]
    return take_turns(sources, quota, set())


def scene_questions(data_type: DataType, question_type: str, view: SceneView, config: ConstructionConfig,
                    rng: np.random.Generator) -> Iterator[Question]:
    """Questions of one type about a scene, random order."""
    make = {"object size": _sizes, "absolute distance": _distances, "relative distance": _nearest,
            "relative direction": _directions, "object count": _counts, "room size": _room, "appearance order": _orders}
    for text, options, answer, facts, key in make[question_type](view, config, rng):
        yield Question(data_type, question_type, text, view.frames, options, answer, facts,
                       (data_type, question_type, view.frames, *key))


def _sizes(view: SceneView, config, rng):
    for a in shuffled(view.only_one(), rng):
        yield (SCENE["object size"].format(a=a.label), None, str(centimetres(max(a.dimensions))),
               size_facts(a.label, a.dimensions, a.axes), (a.id,))


def _distances(view: SceneView, config, rng):
    for pair in shuffled(combinations(view.only_one(), 2), rng):
        a, b = shuffled(pair, rng)
        facts = gap_facts(a.label, a, b.label, b)
        if facts.distance < config.min_distance:
            continue
        yield (SCENE["absolute distance"].format(a=a.label, b=b.label), None, f"{facts.distance:.1f}", facts,
               tuple(o.id for o in pair))


def _nearest(view: SceneView, config, rng):
    categories = view.categories()
    for target in shuffled(view.only_one(), rng):
        groups = {label: items for label, items in categories.items() if not confusable(label, target.label)}
        distance = {label: min(closest_distance(target, item) for item in items) for label, items in groups.items()}
        candidates = _clear_winner(shuffled(sorted(groups), rng), distance, nearest_gap(config))
        if len(candidates) < 2:
            continue
        nearest = min(candidates, key=lambda label: distance[label])
        options, letter = lettered(candidates, nearest, rng)
        order = [option_text(option) for option in options]
        text = SCENE["relative distance"].format(candidates=", ".join(order), target=target.label)
        if any(len(groups[label]) > 1 for label in order):
            text += SEVERAL_INSTANCES
        facts = NearestFacts(target.label, tuple((label, distance[label]) for label in order), nearest)
        yield text, options, letter, facts, (target.id, *sorted(order))


def _clear_winner(labels: Sequence[str], distance: Mapping[str, float], gap: float) -> list[str]:
    """Up to four of `labels` of which the nearest wins by `gap`; as many as possible, else fewer than two."""
    best: list[str] = []
    for winner in labels:
        rivals = [label for label in labels if distance[label] - distance[winner] >= gap]
        group = [winner, *rivals[: MAX_OPTIONS - 1]]
        if len(group) > len(best):
            best = group
    return best


def _directions(view: SceneView, config, rng):
    return round_robin([_directions_of(level, view, config, rng) for level in shuffled(LEVELS, rng)])


def _directions_of(level: Level, view: SceneView, config, rng):
    """Answers in turn, so that the many "front" of a furnished room do not crowd out the few "back"."""
    near = max(config.min_distance_gap, 1e-6)
    by_answer: dict[str, list] = {}
    for stand, face, query in shuffled(permutations(view.only_one(), 3), rng):
        ahead, away = floor_distance(stand.center, face.center), floor_distance(stand.center, query.center)
        if min(ahead, away) < near:
            continue
        angle = turn_angle(stand.center, face.center, query.center)
        swings = swing(ahead, config.center_epsilon) + swing(away, config.center_epsilon)  # who stands there turns both
        direction = turn_sector(angle, level, max(config.direction_margin, swings))
        if direction is not None:
            facts = TurnFacts(stand.label, face.label, query.label, angle, direction)
            by_answer.setdefault(direction, []).append((facts, (level, stand.id, face.id, query.id)))
    for facts, key in round_robin([iter(by_answer[name]) for name in shuffled(sorted(by_answer), rng)]):
        options, letter = lettered(sector_names(level), facts.direction, rng)
        text = DIRECTION[level].format(stand=facts.stand, face=facts.face, query=facts.query)
        yield text, options, letter, facts, key


def _counts(view: SceneView, config, rng):
    categories = view.categories()
    by_count: dict[int, list[str]] = {}
    for label, items in categories.items():
        if len(items) >= config.min_count:
            by_count.setdefault(len(items), []).append(label)
    several = round_robin([iter(shuffled(by_count[n], rng)) for n in shuffled(sorted(by_count), rng) if n > 1])
    for label in [*several, *shuffled(by_count.get(1, []), rng)]:  # else most answers would be 1
        facts = CountFacts(label, tuple(sorted(view.clear[item.id] for item in categories[label])))
        yield SCENE["object count"].format(a=label), None, str(len(categories[label])), facts, (label,)


def _room(view: SceneView, config, rng):
    if view.room is not None:
        area = view.room.area if isinstance(view.room, AreaFacts) else view.room.length * view.room.width
        yield SCENE["room size"], None, f"{area:.1f}", view.room, ()


def _orders(view: SceneView, config, rng):
    first: dict[str, tuple[int, int]] = {}
    for item in view.objects:
        if item.id in view.clear:
            clear, glimpse = first.get(item.label, (10**6, 10**6))
            first[item.label] = min(clear, view.clear[item.id]), min(glimpse, _glimpse(view, item.label))
    labels = [label for label in sorted(first) if not _unrecorded_before(view, label, first[label][0])
              and not any(confusable(label, other.label) for other in view.objects if other.label != label)]
    for size in range(MAX_OPTIONS, MIN_APPEARANCES - 1, -1):
        for group in shuffled(combinations(labels, size), rng):
            order = sorted(group, key=lambda label: first[label])
            if not all(_before(first[a], first[b]) for a, b in zip(order, order[1:])):
                continue
            texts = [", ".join(order)]
            others = [", ".join(p) for p in permutations(order) if list(p) != order]
            texts += shuffled(others, rng)[: MAX_OPTIONS - 1]
            options, letter = lettered(texts, texts[0], rng)
            text = SCENE["appearance order"].format(categories=", ".join(shuffled(order, rng)))
            yield text, options, letter, OrderFacts(tuple((label, first[label][0]) for label in order)), group


def _glimpse(view: SceneView, label: str) -> int:
    """First picture that shows any instance of the category at all."""
    return min(view.glimpsed[item.id] for item in view.objects if item.label == label and item.id in view.glimpsed)


def _unrecorded_before(view: SceneView, label: str, number: int) -> bool:
    """Whether a picture before `number` shows an instance of the category, or may, without a record."""
    return any(view.unrecorded.get(item.id, number) < number for item in view.objects if item.label == label)


def _before(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether (first clear, first glimpse) of one category precedes another's strictly in both senses."""
    return a[0] < b[0] and a[1] < b[1]
