"""Where a party computes. There is no GPU here: the refusal is real, and the path to a device is walked by tensors of
torch's device "meta", which have shapes and no numbers: one tensor that was left on the CPU is an error there, too."""

import numpy as np
import pytest
import torch

from fedseg.data.cases import SiteData
from fedseg.data.loading import load_cohort, load_site
from fedseg.device import asked, device_of, on_device
from fedseg.errors import ConfigError
from fedseg.models import build_model
from fedseg.train import local_steps, patient_loss
from secagg.prg import Stream
from tests.support.command import is_one_sentence
from tests.support.command import run as command
from tests.support.tiny import tiny_study

STUDY = tiny_study()
CUDA = STUDY.replace(run={"device": "cuda"})

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these tests say that no GPU is here")


def test_a_gpu_that_is_not_there_is_refused_before_an_image_is_read(tmp_path, capsys, monkeypatch) -> None:
    study = tmp_path / "study.toml"
    study.write_text(CUDA.toml(), encoding="utf-8")
    monkeypatch.setattr("fedseg.data.loading.load_cohort", None)  # who reads an image fails
    code, _, said = command(capsys, monkeypatch, "simulate", study, "--out", tmp_path / "runs")
    assert code
    assert is_one_sentence(said)
    assert "[run] device = 'cuda': torch" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("built", [True, False])
def test_the_sentence_says_whether_torch_or_the_machine_lacks_it(monkeypatch, built) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.1" if built else None)
    with pytest.raises(ConfigError, match="finds no GPU here" if built else "was built without CUDA"):
        device_of(CUDA)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("quick", [False, True])
def test_every_tensor_of_a_patients_gradient_follows_the_model(monkeypatch, dims, quick) -> None:
    flat = {"dims": dims, "slices_per_patient": 1}
    study = STUDY.replace(data=flat, run={"channels_last": quick})
    model, case = build_model(study), load_site(None, "site-a", study).train[0]
    model.to("meta")
    loss = patient_loss(model, [case], study, Stream.seeded(1, "slices"))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert {loss.device.type, *(gradient.device.type for gradient in gradients)} == {"meta"}
    assert loss.dtype == torch.float32
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)  # a tensor that stays behind is found
    with pytest.raises(RuntimeError, match="meta"):
        patient_loss(model, [case], study, Stream.seeded(1, "slices"))


def test_the_models_way_to_a_device_and_back_changes_no_bit(monkeypatch) -> None:
    went = []
    model, study = build_model(STUDY), STUDY
    monkeypatch.setattr(model, "to", lambda where: went.append(str(where)))
    with on_device(model, study):
        pass
    assert went == ["cpu", "cpu"]


def test_channels_last_changes_rounding_alone_and_mixed_precision_little() -> None:
    """On the CPU, where both can be tried; the update still fits its clip, for it is clipped in double precision."""
    data: SiteData = load_cohort(None, STUDY)["site-a"]
    moved = {}
    for name, run in {"plain": {}, "last": {"channels_last": True}, "mixed": {"mixed_precision": True}}.items():
        study = tiny_study(mechanism="none").replace(run=run)
        taken = local_steps(build_model(study), data, study, site="site-a", round_number=1)
        moved[name] = taken.update("site-a", "e", lambda _: bytes(32)).vector
    scale = np.abs(moved["plain"]).max()
    assert np.abs(moved["last"] - moved["plain"]).max() < 1e-4 * scale
    assert 0 < np.abs(moved["mixed"] - moved["plain"]).max() < 0.2 * scale


def test_mixed_precision_computes_in_bfloat16_and_answers_in_float32() -> None:
    seen = []
    model = build_model(STUDY)
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    images = torch.zeros(1, 1, 32, 32)
    assert asked(model, images, STUDY).dtype == torch.float32
    assert asked(model, images, STUDY.replace(run={"mixed_precision": True})).dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]
