"""Processor, positions and the small model's folder."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from models.inputs import MediaError, chat_text, encode, image_size, load_images, processed_size, prompt_token_ids, video_metadata
from models.loading import ModelFolderError, check_model_folder, load_policy, load_processor, save_policy
from models.positions import rope_positions
from models.tiny import SINGLE_TOKEN_INTEGERS, build_tiny
from models.tokens import banned_token_ids, end_token_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), seed=1)


@pytest.fixture(scope="module")
def processor(folder):
    return load_processor(folder)


def test_positions_of_text_image_text_by_hand():
    types = [0, 0] + [1] * 6 + [0]
    positions = rope_positions(types, [(1, 4, 6)], 2, 4.0)
    assert positions.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2, 5], [0, 1, 2, 2, 2, 3, 3, 3, 5], [0, 1, 2, 3, 4, 2, 3, 4, 5]]


def test_text_after_a_video_resumes_behind_its_last_time_step():
    positions = rope_positions([0] + [2] * 4 + [0], [(4, 2, 2)], 2, 4.0)
    assert positions[0].tolist() == [0, 1, 5, 9, 13, 14]
    assert positions[1].tolist() == [0, 1, 1, 1, 1, 14]


@pytest.mark.parametrize("types, grids, message", [
    ([1] * 4, [], "more runs"), ([1] * 3, [(1, 4, 4)], "does not fit"), ([0], [(1, 2, 2)], "more media"),
])
def test_positions_refuse_grids_that_disagree(types, grids, message):
    with pytest.raises(ValueError, match=message):
        rope_positions(types, grids, 2, 1.0)


def test_image_positions_equal_transformers(processor, folder):
    images = [Image.new("RGB", (168, 168)), Image.new("RGB", (200, 120))]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]}]
    encoded = encode(processor, chat, images, False)
    theirs, _ = load_policy(folder).model.get_rope_index(
        torch.tensor([encoded.input_ids]), torch.tensor([encoded.token_types]), image_grid_thw=encoded.grid_thw)
    assert torch.equal(encoded.positions, theirs[:, 0])


@pytest.mark.parametrize("size, expected", [((168, 168), (112, 112)), ((1296, 968), (112, 84))])
def test_processed_size_is_the_size_of_the_grid(processor, size, expected):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    encoded = encode(processor, chat, [Image.new("RGB", size)], False)
    assert processed_size(processor, size) == expected
    assert (encoded.grid_thw[0, 2] * 14, encoded.grid_thw[0, 1] * 14) == expected


@pytest.mark.parametrize("height, width, limit, expected", [
    (968, 1296, 128, (252, 364)), (1296, 968, 128, (364, 252)), (480, 640, 128, (252, 364)), (720, 1280, 128, (224, 420)),
    (968, 1296, 512, (532, 728)), (480, 640, 512, (476, 644)), (720, 1280, 512, (448, 840)),
])
def test_processed_size_vectors_of_the_specification(processor, monkeypatch, height, width, limit, expected):
    monkeypatch.setattr(processor.image_processor, "size", {"shortest_edge": 16 * 784, "longest_edge": limit * 784})
    assert processed_size(processor, (width, height)) == expected[::-1]


def _metadata(frames):
    declared = video_metadata(frames)
    declared.pop("do_sample_frames")
    return VideoMetadata(**declared)


@pytest.mark.parametrize("count, is_video", [(0, False), (1, False), (3, False), (5, True)])
def test_an_encoded_chat_is_what_the_processor_gives(processor, count, is_video):
    noise = np.random.default_rng(count)
    sizes = [(140, 168)] * count if is_video else [(140 + 28 * index, 168) for index in range(count)]
    images = [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    kinds = ["video"] if is_video else ["image"] * count
    chat = [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": "Where?"}]}]
    media = {}
    if is_video:
        media = {"videos": [np.stack(images)], "video_metadata": [_metadata(count)],
                 "do_sample_frames": False}
    elif count:
        media = {"images": images}
    theirs = processor(text=[chat_text(processor, chat)], return_tensors="pt", **media)
    ours = encode(processor, chat, images, is_video)
    assert list(ours.input_ids) == theirs["input_ids"][0].tolist()
    assert list(ours.token_types) == theirs["mm_token_type_ids"][0].tolist()
    if count:
        assert torch.equal(ours.pixel_values, theirs["pixel_values_videos" if is_video else "pixel_values"])
        assert torch.equal(ours.grid_thw, theirs["video_grid_thw" if is_video else "image_grid_thw"])
    assert not is_video or theirs["second_per_grid_ts"].tolist() == [2.0]


@pytest.mark.parametrize("placeholders, message", [(1, "fewer placeholders"), (3, "more placeholders")])
def test_media_that_disagree_with_the_placeholders_are_refused(processor, placeholders, message):
    chat = [{"role": "user", "content": [{"type": "image"}] * placeholders + [{"type": "text", "text": "?"}]}]
    with pytest.raises(ValueError, match=message):
        encode(processor, chat, [Image.new("RGB", (112, 112))] * 2, False)


def test_integers_are_one_token_and_text_survives(processor):
    tokenizer = processor.tokenizer
    assert all(len(tokenizer(str(n), add_special_tokens=False).input_ids) == 1 for n in SINGLE_TOKEN_INTEGERS)
    text = '<think>Größe 12.5 m, 漢字</think><answer>[{"bbox_2d":[1,2,30,112]}]</answer>'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_tiny_model_size_and_vocabulary(folder, processor):
    model = load_policy(folder)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    banned = banned_token_ids(processor, len(processor.tokenizer) + 2)
    assert len(processor.tokenizer) in banned and len(processor.tokenizer) + 1 in banned
    assert end_token_id(processor) not in banned and model.config.image_token_id in banned


def test_same_seed_same_weights(folder, tmp_path):
    again = build_tiny(tmp_path / "again", seed=1)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_engine_prompt_keeps_one_placeholder_per_medium(processor):
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    chat = [{"role": "user", "content": [{"type": "image"}] * 8 + [{"type": "text", "text": "?"}]}]
    assert prompt_token_ids(processor, chat).count(image_id) == 8
    assert video_metadata(6)["frames_indices"] == [0, 1, 2, 3, 4, 5]


def test_a_folder_without_processor_is_refused(folder, tmp_path):
    load_policy(folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelFolderError, match=r"lacks tokenizer.json.*image processor.*chat template.*processor.save_pretrained"):
        check_model_folder(tmp_path / "bare")
    with pytest.raises(ModelFolderError, match="does not exist"):
        check_model_folder(tmp_path / "nowhere")


def test_saved_policy_loads_with_its_own_weights(folder, tmp_path):
    model = load_policy(folder)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    saved = save_policy(model, folder, tmp_path / "out" / "hf", state)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved)
    torch.testing.assert_close(again.lm_head.weight, model.lm_head.weight + 1)
    assert list(saved.parent.iterdir()) == [saved]
    load_processor(saved)


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(MediaError, match="bad.png cannot be read"):
        load_images([str(tmp_path / "bad.png")])
    with pytest.raises(MediaError, match="gone.png does not exist"):
        load_images([str(tmp_path / "gone.png")])


def test_exif_orientation_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (20, 40) == load_images([str(tmp_path / "turned.jpg")])[0].size
