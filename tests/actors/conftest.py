from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.digit_writer import digit_writer
from grpo_cases import row


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model that answers questions about a picture with random digits, and that picture: a moment's training, done once."""
    folder = tmp_path_factory.mktemp("writer")
    picture = str(folder / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 140, 3), dtype=np.uint8)).save(picture)
    return digit_writer(folder / "model", [row(index, (picture,)) for index in range(6)]), picture
