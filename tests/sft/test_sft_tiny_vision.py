"""The vision tower's own training: deterministic, it learns, and its targets are the picture's."""

import re

import pytest
import torch

from models.loading import load_policy
from models.tiny import build_tiny
from sft.tiny_vision import cell_targets, train_vision


@pytest.fixture
def trained_tower(rows, tmp_path, monkeypatch):
    """The vision tower after some steps on all eight pictures at a time."""
    monkeypatch.setattr("sft.tiny_vision.BATCH", 8)

    def train(steps):
        visual = load_policy(build_tiny(tmp_path / str(steps), seed=2)).model.visual
        torch.seed()  # only the training's own seed may decide
        train_vision(visual, rows.pictures, lambda picture: rows.patches(picture.rgb), lambda picture: picture, steps, 0)
        return visual.state_dict()

    return train


def test_vision_training_is_deterministic(trained_tower):
    one, two = trained_tower(3), trained_tower(3)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_vision_training_lowers_its_errors(trained_tower, capsys):
    trained_tower(100)
    lines = re.findall(r"loss ([\d.]+)  labels ([\d.]+)  box error ([\d.]+)", capsys.readouterr().out)
    (loss, labels, box), (later_loss, later_labels, later_box) = [tuple(map(float, line)) for line in lines]
    assert later_loss < loss / 2 and later_labels > 1.5 * labels and later_box < box / 2


def test_cell_targets_by_hand(rows):
    labels, colors, boxes = cell_targets(rows.pictures)
    assert labels.shape == (8, 16) and boxes.shape == (8, 16, 4)
    picture = rows.pictures[0]
    for cell, index in enumerate(picture.cells.reshape(-1)):
        if index >= 0:
            assert boxes[0, cell].tolist() == pytest.approx([value / 112 for value in picture.things[index].box])
