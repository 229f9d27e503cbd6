"""Model folders that cannot be used are refused, by file names alone where that is enough."""

import json
from pathlib import Path

import pytest

from models.loading import ModelFolderError, check_model_folder, load_processor

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def sharded(tmp_path) -> Path:
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json", *SHARDS):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_weights_in_several_files_are_accepted(sharded):
    assert check_model_folder(sharded) == sharded


def test_an_index_without_its_files_names_them(sharded):
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(ModelFolderError, match=rf"names: {SHARDS[1]}; fetch") as refused:
        check_model_folder(sharded)
    assert SHARDS[0] not in str(refused.value)


def test_an_index_does_not_count_beside_the_whole_weights(sharded):
    for name in SHARDS:
        (sharded / name).unlink()
    (sharded / "model.safetensors").write_text("{}")
    assert check_model_folder(sharded) == sharded


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_said(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelFolderError, match="is no index of weights"):
        check_model_folder(sharded)


def test_a_damaged_processor_is_said(sharded):
    (sharded / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="the processor of .* cannot be loaded .*; restore"):
        load_processor(sharded)
