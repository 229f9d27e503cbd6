"""WeightStore: versions are complete, checked byte by byte, and removed when nobody needs them."""

import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.weights import (
    EMBEDDING,
    HEAD,
    TensorSpec,
    WeightStore,
    WeightVersionError,
    canonical_name,
    check_complete,
    checksum,
    expected_shapes,
    read_verified,
    shared_memory_folder,
)


def small_state():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 3, generator=generator)
    return {
        EMBEDDING: torch.randn(5, 3, generator=generator),
        "model.language_model.layers.0.self_attn.q_proj.weight": query.to(torch.bfloat16),
        "model.visual.patch_embed.proj.weight": torch.randn(2, 2, generator=generator),
    }


@pytest.fixture
def store(tmp_path):
    store = WeightStore(tmp_path / "weights")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("saved", "module"),
    [
        ("model.embed_tokens.weight", EMBEDDING),
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        (HEAD, HEAD),
    ],
)
def test_saved_and_module_names_become_one(saved, module):
    assert canonical_name(saved) == module
    assert canonical_name(module) == module


def test_checksum_is_the_crc_of_the_bytes_and_sees_a_single_bit():
    tensor = torch.tensor([1.0, 2.0], dtype=torch.float32)
    assert checksum(tensor) == f"crc32:{zlib.crc32(bytes.fromhex('0000803f00000040')):08x}"
    flipped = tensor.clone()
    flipped.view(torch.int32)[1] ^= 1
    assert checksum(flipped) != checksum(tensor)


def test_checksum_of_a_transposed_view_is_that_of_its_own_order():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert checksum(tensor.T) == checksum(tensor.T.contiguous()) != checksum(tensor)


def test_published_file_holds_the_tensors_and_the_tied_head_last(store):
    state = small_state()
    version = store.publish(4, state)
    content = load_file(version.path)
    assert [spec.name for spec in version.manifest] == [*state, HEAD]
    assert torch.equal(content[HEAD], state[EMBEDDING])
    assert all(torch.equal(content[name], tensor) for name, tensor in state.items())
    assert version.nbytes == 4 * 15 + 2 * 9 + 4 * 4 + 4 * 15
    assert [path.name for path in store.folder.iterdir()] == ["v4.safetensors"]
    read_verified(version.path, version.manifest)


def test_a_head_that_shares_storage_with_the_embedding_is_written_whole(store):
    state = small_state()
    state[HEAD] = state[EMBEDDING]
    assert torch.equal(load_file(store.publish(0, state).path)[HEAD], state[EMBEDDING])


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    store = WeightStore(tmp_path / "weights", tied_embeddings=False)
    with pytest.raises(WeightVersionError, match="lm_head.weight is missing"):
        store.publish(0, small_state())
    assert list(store.folder.iterdir()) == []


def test_a_number_is_published_once(store):
    store.publish(0, small_state())
    with pytest.raises(WeightVersionError, match="version 0 is already published"):
        store.publish(0, small_state())


def test_a_changed_byte_in_the_file_is_found_and_named(store):
    version = store.publish(0, small_state())
    content = load_file(version.path)
    content["model.visual.patch_embed.proj.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(content, version.path)
    with pytest.raises(WeightVersionError, match="model.visual.patch_embed.proj.weight has checksum"):
        read_verified(version.path, version.manifest)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop(EMBEDDING), "missing .*embed_tokens"),
        (lambda content: content.update(extra=torch.zeros(1)), "not in the manifest .*extra"),
        (lambda content: content.update({EMBEDDING: torch.zeros(3, 5)}), r"embed_tokens.weight is .'float32'"),
        (lambda content: content.update({EMBEDDING: torch.zeros(5, 3).double()}), "embed_tokens.weight is .'float64'"),
    ],
)
def test_a_file_that_is_not_its_manifest_is_refused(store, edit, message):
    version = store.publish(0, small_state())
    content = load_file(version.path)
    edit(content)
    save_file(content, version.path)
    with pytest.raises(WeightVersionError, match=message):
        read_verified(version.path, version.manifest)


def test_released_versions_are_gone_and_close_removes_the_folder(store):
    first, second = store.publish(1, small_state()), store.publish(2, small_state())
    store.release(1)
    assert store.live == (2,)
    with pytest.raises(WeightVersionError, match="cannot be read"):
        read_verified(first.path, first.manifest)
    read_verified(second.path, second.manifest)
    with pytest.raises(WeightVersionError, match="version 1 is not published"):
        store.release(1)
    store.close()
    assert not store.folder.exists()


def test_a_restarted_run_removes_what_its_predecessor_left(tmp_path):
    folder = tmp_path / "weights"
    WeightStore(folder).publish(7, small_state())
    (folder / "v8.safetensors.tmp").write_bytes(b"half")
    assert list(WeightStore(folder).folder.iterdir()) == []


def test_runs_have_folders_of_their_own_and_keep_them(tmp_path):
    assert shared_memory_folder(tmp_path / "a") == shared_memory_folder(tmp_path / "x" / ".." / "a")
    assert shared_memory_folder(tmp_path / "a") != shared_memory_folder(tmp_path / "b")


def test_manifest_must_have_the_engines_names_and_shapes_exactly():
    expected = {"a": (2, 3), "b": (4,)}
    good = (TensorSpec("a", "float32", (2, 3), ""), TensorSpec("b", "float32", (4,), ""))
    check_complete(good, expected)
    with pytest.raises(WeightVersionError, match=r"missing b \(4,\)"):
        check_complete(good[:1], expected)
    with pytest.raises(WeightVersionError, match="unknown c"):
        check_complete((*good, TensorSpec("c", "float32", (1,), "")), expected)
    with pytest.raises(WeightVersionError, match=r"b has shape \(5,\), the engine needs \(4,\)"):
        check_complete((good[0], TensorSpec("b", "float32", (5,), "")), expected)


def test_expected_shapes_add_the_tied_head_and_use_module_names(tmp_path):
    saved = {"model.embed_tokens.weight": torch.zeros(5, 3), "visual.x": torch.zeros(2)}
    save_file(saved, tmp_path / "model.safetensors")
    assert expected_shapes(tmp_path) == {EMBEDDING: (5, 3), "model.visual.x": (2,), HEAD: (5, 3)}
    with pytest.raises(WeightVersionError, match="no .*safetensors files"):
        expected_shapes(tmp_path / "nothing")
