"""Readers of published formats, on files that each format's own tools wrote (weights_files)."""

from __future__ import annotations

import gzip
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from fastdw.models import MobileNetV1, mobilenet_v1, weights
from fastdw.models.weights.formats.tflite import read_tflite

FOLDER = Path(__file__).with_name("weights_files")

# Name of a file -> the padding convention of the network in it.
EXACT = {
    "v1.h5": "keras_v1",
    "v1_fp32.tflite": "keras_v1",
    "v1.pb": "same",
    "slim/model.ckpt.index": "same",
    "v1.caffemodel": "same",
}
ROUNDED = ("v1_fp16.tflite", "v1_int8.tflite", "tfjs/weights_manifest.json")
FILES = (*EXACT, *ROUNDED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files, the compressed one unpacked."""
    copy = tmp_path_factory.mktemp("weights") / "files"
    shutil.copytree(FOLDER, copy)
    (copy / "v1.h5").write_bytes(gzip.decompress((copy / "v1.h5.gz").read_bytes()))
    return copy


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Tensor]:
    """The weights under our names, as the Keras file has them."""
    return weights.translate(weights.read(folder / "v1.h5"))


def network(padding: str) -> MobileNetV1:
    return mobilenet_v1(1 / 32, 5, eps=1e-3, padding=padding, round_nearest=1)


@pytest.mark.parametrize("name", EXACT)
def test_the_network_gives_what_its_origin_gives(name: str, folder: Path) -> None:
    model = weights.load(network(EXACT[name]), folder / name).eval()
    expected = np.load(folder / "expected.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["images"]).permute(0, 3, 1, 2))
    wanted = torch.from_numpy(expected["logits"])
    assert (wanted[0] - wanted[1]).abs().max() > 0.5
    assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_tflite_fp16_is_rounded_once(folder: Path) -> None:
    fp32, fp16 = (read_tflite(folder / f"v1_{kind}.tflite") for kind in ("fp32", "fp16"))
    assert (fp32.types, fp16.types) == ({"FLOAT32"}, {"FLOAT16"})
    for exact, rounded in zip(fp32.convolutions, fp16.convolutions, strict=True):
        torch.testing.assert_close(rounded.weight, exact.weight.half().float(), rtol=0, atol=0)
        torch.testing.assert_close(rounded.bias, exact.bias.half().float(), rtol=0, atol=0)


def test_tflite_int8_is_off_by_half_a_step_of_its_channel(folder: Path) -> None:
    fp32, int8 = (read_tflite(folder / f"v1_{kind}.tflite") for kind in ("fp32", "int8"))
    assert "INT8" in int8.types
    steps = []
    for exact, rounded in zip(fp32.convolutions, int8.convolutions, strict=True):
        step = exact.weight.abs().flatten(1).amax(1) / 127
        off = (rounded.weight - exact.weight).abs().flatten(1).amax(1)
        assert (off <= 0.51 * step).all()
        steps += step.tolist()
    assert len(set(steps)) > 100  # a scale for every channel


def test_tflite_tells_geometry(folder: Path) -> None:
    model = read_tflite(folder / "v1_fp32.tflite")
    assert model.input_shape[1:] == (32, 32, 3)
    assert len(model.convolutions) == 28
    stem, depthwise, pointwise, strided = model.convolutions[:4]
    assert (stem.padding, stem.stride, stem.input_size) == ("same", (2, 2), (32, 32))
    assert (depthwise.padding, depthwise.groups, depthwise.activation) == ("same", 1, "relu6")
    assert pointwise.weight.shape == (2, 1, 1, 1)
    assert (strided.weight.shape, strided.groups, strided.stride) == ((2, 1, 3, 3), 2, (2, 2))
    assert model.convolutions[-1].activation == "none"


def test_tflite_padding_before_a_convolution_is_its_own(folder: Path) -> None:
    (convolution,) = read_tflite(folder / "padded.tflite").convolutions
    assert convolution.padding == (1, 1, 1, 1)
    assert (convolution.input_size, convolution.activation) == ((8, 8), "relu")


TFJS_LEVELS = {"pointwise.conv.weight": 255, "depthwise.conv.weight": 65535}
"""Weights stored in 8 and in 16 bits, and into how many steps that cuts their range."""


def test_tfjs_weights_of_every_type(folder: Path, truth: dict[str, Tensor]) -> None:
    state = weights.translate(weights.read(folder / "tfjs" / "weights_manifest.json"))
    assert state.keys() == truth.keys()
    seen = set()
    for name, tensor in state.items():
        exact = truth[name]
        level = next((n for part, n in TFJS_LEVELS.items() if name.endswith(part)), None)
        if level:
            # The writer moves zero onto a step: the range then shifts by up to half a step.
            step = (max(exact.max().item(), 0) - min(exact.min().item(), 0)) / level
            torch.testing.assert_close(tensor, exact, rtol=0, atol=1.1 * step + 1e-6)
            seen.add(level)
        elif name.startswith("stem.bn"):
            torch.testing.assert_close(tensor, exact.half().float(), rtol=0, atol=0)
        elif "depthwise" not in name:  # 16 bits again, over the narrow range of a batch norm
            assert torch.equal(tensor, exact), name
    assert seen == {255, 65535}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(name: str, part: float, folder: Path, tmp_path: Path) -> None:
    path = copied(folder / name, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="path: ") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("name", ["slim/model.ckpt.index", "tfjs/weights_manifest.json"])
def test_a_truncated_companion_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    path = copied(folder / name, tmp_path)
    companion = max(path.parent.iterdir(), key=lambda other: (other != path, other.stat().st_size))
    companion.write_bytes(companion.read_bytes()[:-1])
    with pytest.raises(ValueError, match="path: "):
        weights.read(path)
    companion.unlink()
    with pytest.raises(FileNotFoundError, match="path: no file"):
        weights.read(path)


@pytest.mark.parametrize("name", FILES)
def test_no_damage_does_worse_than_a_refusal(name: str, folder: Path, tmp_path: Path) -> None:
    """A byte flipped anywhere gives a ValueError, or other numbers; never anything else."""
    path = copied(folder / name, tmp_path)
    content, chance = path.read_bytes(), random.Random(name)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[chance.randrange(min(len(content), 1 << 13))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            weights.read(path)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).startswith("path: ")
            refused += 1
    assert refused


def test_a_changed_index_is_noticed(folder: Path, tmp_path: Path) -> None:
    """A flipped bit in the place of a weight: only the checksum tells."""
    path = copied(folder / "slim/model.ckpt.index", tmp_path)
    content = bytearray(path.read_bytes())
    for at in range(0, 5000, 100):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ValueError, match="another checksum|damaged or no checkpoint"):
            weights.read(path)


def test_a_shard_longer_than_its_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder / "tfjs/weights_manifest.json", tmp_path)
    last = path.with_name("group1-shard2of2.bin")
    last.write_bytes(last.read_bytes() + b"0")
    with pytest.raises(ValueError, match="the shards have 10849 bytes, the manifest lists 10848"):
        weights.read(path)


def test_a_manifest_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    inner = tmp_path / "inner"
    inner.mkdir()
    listed = '[{"name": "w", "shape": [1], "dtype": "float32"}]'
    manifest = inner / "model.json"
    manifest.write_text(f'[{{"paths": ["../secret.bin"], "weights": {listed}}}]')
    with pytest.raises(ValueError, match="no file beside the manifest"):
        weights.read(manifest)


@pytest.mark.parametrize(
    ("shard", "shape", "message"),
    [("", "1", "the shard '' is no file beside"), ("s.bin", "1e999", "m.json: cannot convert")],
)
def test_a_manifest_of_nonsense(shard: str, shape: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.bin").write_bytes(bytes(4))
    listed = f'[{{"name": "w", "shape": [{shape}], "dtype": "float32"}}]'
    (tmp_path / "m.json").write_text(f'[{{"paths": ["{shard}"], "weights": {listed}}}]')
    with pytest.raises(ValueError, match=f"path: .*{message}"):
        weights.read(tmp_path / "m.json")


def test_a_layers_model_holds_its_manifest(folder: Path, tmp_path: Path) -> None:
    path = copied(folder / "tfjs" / "weights_manifest.json", tmp_path)
    model = path.with_name("model.json")
    model.write_text(f'{{"modelTopology": {{}}, "weightsManifest": {path.read_text()}}}')
    plain, wrapped = weights.read(path), weights.read(model)
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain | wrapped)


@pytest.mark.parametrize("virtual", [True, False])
def test_keras_weights_that_lie_in_another_file_are_not_read(virtual: bool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.ones(4, np.float32)
    with h5py.File(tmp_path / "model.h5", "w") as file:
        if virtual:
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "a", (4,))
            file.create_virtual_dataset("conv/kernel", layout)
        else:
            place = [(tmp_path / "secret", 0, 16)]
            file.create_dataset("conv/kernel", (4,), np.float32, external=place)
    with pytest.raises(ValueError, match="its conv/kernel lies in another file, which is not read"):
        weights.read(tmp_path / "model.h5")


def test_weights_without_names_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 8), np.float32)
    with pytest.raises(ValueError, match="no names of their own"):
        weights.read(tmp_path / "model.weights.h5")


def test_safetensors(tmp_path: Path, truth: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "v1.safetensors"
    save_file(truth, path)
    assert all(torch.equal(tensor, truth[name]) for name, tensor in weights.read(path).items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or truncated"):
        weights.read(path)


def copied(path: Path, folder: Path) -> Path:
    """A copy of the file that may be damaged; one with companions brings its folder."""
    if path.parent.name == "files":
        return Path(shutil.copy(path, folder))
    shutil.copytree(path.parent, folder / path.parent.name)
    return folder / path.parent.name / path.name
