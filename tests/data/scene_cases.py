"""Scenes of posed frames and of turned boxes, seen whole, and what tests ask of a question."""

import numpy as np

from data.scene_questions import SceneView, floor
from data.scenes.posed_frames import PosedFrames
from data.scenes.types import SceneObject, Solid
from data.templates import option_text


def chosen(question):
    """The text of the right answer: the option without its letter, or the number."""
    if question.options is None:
        return question.answer
    return {option[0]: option_text(option) for option in question.options}[question.answer]


def posed_scenes(folder):
    """All scenes of a folder of posed frames."""
    source = PosedFrames(str(folder))
    return [source.load(scene_id) for scene_id in source.scene_ids()]


def thing(identity, label, center, dimensions, yaw):
    c, s = float(np.cos(yaw)), float(np.sin(yaw))
    axes = ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0))
    solid = Solid("box", center, tuple(d / 2 for d in dimensions), (0.5, 0.5, 0.5), axes)
    return SceneObject(identity, label, center, dimensions, (solid,), axes)


def seen_whole(scene):
    """All of the scene, as if one picture showed every thing clearly."""
    objects = tuple(sorted(scene.objects, key=lambda o: o.id))
    return SceneView(objects, ("f0",), {o.id: 1 for o in objects}, {o.id: 1 for o in objects}, {}, floor(scene))
