"""Eight generic pictures with a random tiny model's processor, for the tests of the tiny base's training."""

import numpy as np
import pytest

from data.pictures import make_picture
from models.tiny import build_tiny
from sft.tiny_turns import Rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    pictures = [make_picture(np.random.default_rng((9, index)), 112, 112) for index in range(8)]
    return Rows(build_tiny(tmp_path_factory.mktemp("tiny"), seed=2), pictures)
