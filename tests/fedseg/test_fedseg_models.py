"""Networks, flat vectors, model files, and the update that cannot leave."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import AttentionUnet
from safetensors.torch import save_file

from fedseg.errors import ConfigError, UnsupportedModelError
from fedseg.models import build_model, building, check_model, load_model, metadata_of, save_model, study_of
from fedseg.models.network import Network
from fedseg.models.table import NETWORKS as ALL
from fedseg.privacy.dpsgd import summed
from fedseg.study import Study, load_study
from fedseg.update import assign, flatten, model_hash

NETWORKS = [name for name, network in ALL.items() if network.task == "segmentation"]
STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDIES / "phantom.toml").replace(data={"size": 32}, model={"channels": [4, 8, 8]})


@pytest.mark.parametrize("changes", [{}, {"training": {"trainable": "lora:2"}}], ids=["whole", "lora"])
def test_networks_built_at_the_same_time_begin_with_the_same_weights(study: Study, changes: dict) -> None:
    """Sites of one process build theirs in threads, and torch draws weights from one generator of the process."""
    study = study.replace(**changes)
    with ThreadPoolExecutor(8) as pool:
        built = pool.map(lambda _: build_model(study), range(64))
        assert len({b"".join(value.numpy().tobytes() for value in model.state_dict().values()) for model in built}) == 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_the_size_and_mixes_nobody(name: str, dims: int, study: Study) -> None:
    study = study.replace(model={"name": name, "channels": []}, data={"dims": dims, "slices_per_patient": 1})
    model = build_model(study).eval()
    images = torch.randn(2, 1, *[32] * dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both, alone = model(images), model(images[:1])
    assert both.shape == (2, 8, *[32] * dims)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert any(isinstance(layer, torch.nn.GroupNorm) for layer in model.modules())


@pytest.mark.parametrize("name", ["dynunet", "segresnet"])
def test_deep_supervision_gives_smaller_outputs_in_training_only(name: str, study: Study) -> None:
    deep = study.replace(model={"name": name, "channels": []}, training={"deep_supervision": True})
    model, images = build_model(deep), torch.zeros(1, 1, 32, 32)
    shapes = [tuple(output.shape) for output in model.train()(images)]
    assert shapes[:2] == [(1, 8, 32, 32), (1, 8, 16, 16)]
    assert model.eval()(images).shape == (1, 8, 32, 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_through_a_file_and_gives_a_gradient_of_each_patient(
    name: str, study: Study, tmp_path: Path
) -> None:
    study = study.replace(model={"name": name, "channels": []})
    model = build_model(study)
    save_model(model, tmp_path / "m.safetensors", metadata_of(study))
    assert np.array_equal(flatten(load_model(tmp_path / "m.safetensors", study)), flatten(model))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    each = [summed(parameters, [model(image[None]).square().mean()], None) for image in images]
    both = summed(parameters, [2 * model(images).square().mean()], None)
    torch.testing.assert_close(each[0] + each[1], both, rtol=1e-3, atol=1e-5)
    assert not torch.equal(each[0], each[1])


def test_a_grid_that_the_network_cannot_halve_is_refused(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"\[data\] size or patch = 48: network 'dynunet' .* of 32; choose 64"):
        build_model(study.replace(model={"name": "dynunet", "channels": [4] * 6}, data={"size": 48}))


def test_every_party_builds_the_same_weights_and_leaves_the_global_generator_alone(study: Study) -> None:
    torch.manual_seed(5)
    first = flatten(build_model(study))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert np.array_equal(first, flatten(build_model(study)))
    assert not np.array_equal(first, flatten(build_model(study.replace(study={"seed": 77}))))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (torch.nn.BatchNorm2d(4), "BatchNorm2d"),
        (torch.nn.BatchNorm3d(4), "BatchNorm3d"),
        (torch.nn.SyncBatchNorm(4), "SyncBatchNorm"),
        (torch.nn.LazyBatchNorm2d(), "BatchNorm2d"),
        (torch.nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm2d"),
    ],
)
def test_a_layer_that_mixes_patients_is_refused_by_name(layer: torch.nn.Module, name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Sequential(layer))
    with pytest.raises(UnsupportedModelError, match=rf"layer '1\.0' is a \w*{name}.*use GroupNorm"):
        check_model(model)


def test_layers_that_mix_nobody_pass() -> None:
    check_model(torch.nn.Sequential(torch.nn.InstanceNorm2d(4), torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm(4)))


def test_a_network_with_batchnorm_cannot_be_built_from_a_study(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*_: object) -> torch.nn.Module:
        return AttentionUnet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))

    monkeypatch.setattr(building, "NETWORKS", {"unet-small": Network(attention, ())})
    with pytest.raises(UnsupportedModelError, match="BatchNorm2d"):
        build_model(study)


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("unet-small", [6, 12], r"channels = \[6, 12\]: each must be a multiple of 4"),
        ("unet", [8], "needs at least two levels"),
        ("segresnet", [8, 16], "segresnet takes one number"),
        ("dynunet", [8], "needs at least two levels"),
        ("monet", [8], "three levels"),
        ("unet-resnet18", [8], "5 widths"),
    ],
)
def test_channels_that_do_not_fit_are_refused(name: str, channels: list[int], words: str, study: Study) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(study.replace(model={"name": name, "channels": channels}))


def test_flatten_and_assign_are_inverse_and_copy(study: Study) -> None:
    model = build_model(study)
    before = flatten(model)
    wanted = np.arange(len(before), dtype=np.float32)
    assign(model, wanted)
    assert np.array_equal(flatten(model), wanted)
    wanted[:] = 0
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert flatten(model)[0] == 1
    assert flatten(model)[-1] == len(wanted) - 1
    with pytest.raises(ConfigError, match=r"parameters and the vector has shape \(3,\)"):
        assign(model, np.zeros(3, np.float32))


def test_model_hash_sees_every_value_and_the_length() -> None:
    vector = np.linspace(0, 1, 10, dtype=np.float32)
    other = vector.copy()
    other[9] = np.nextafter(other[9], np.float32(2))
    hashes = {model_hash(vector), model_hash(other), model_hash(vector[:9])}
    assert len(hashes) == 3
    assert model_hash(vector.astype(">f4")) == model_hash(vector)


def test_a_model_file_gives_back_weights_and_study(study: Study, tmp_path: Path) -> None:
    model = build_model(study)
    assign(model, np.arange(len(flatten(model)), dtype=np.float32))
    path = tmp_path / "model.safetensors"
    save_model(model, path, metadata_of(study))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    assert study_of(path) == study
    assert np.array_equal(flatten(load_model(path, study)), flatten(model))


def test_an_interrupted_write_leaves_the_old_model(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    write = Path.write_bytes

    def broken(target: Path, data: bytes) -> None:
        write(target, data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(build_model(study), path, {})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_that_is_no_model_is_named(study: Study, tmp_path: Path) -> None:
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, words in [("garbage", "cannot be read"), ("absent", "cannot be read"), ("other", "do not fit network")]:
        with pytest.raises(ConfigError, match=rf"{name}.safetensors: .*{words}"):
            load_model(tmp_path / f"{name}.safetensors", study)
    with pytest.raises(ConfigError, match="holds no study"):
        study_of(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        study_of(tmp_path / "garbage.safetensors")
