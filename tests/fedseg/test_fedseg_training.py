"""What `[training]` and the working grid say: rates, optimisers, batches, views, patches, flips, refusals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
)
from scipy.stats import ks_2samp

from fedseg.augment import viewed
from fedseg.data.cases import Case, mirror_axes
from fedseg.data.grid import grid_around
from fedseg.data.loading import load_site
from fedseg.errors import ConfigError
from fedseg.models import build_model
from fedseg.optimisers import CorrectedAdam
from fedseg.privacy.dpsgd import noisy_gradient
from fedseg.study import Study, load_study
from fedseg.tasks.segmentation import Segmentation
from fedseg.tasks.table import batch_of
from fedseg.train import batch_loss, local_steps
from fedseg.update import PlainSteps, assign, flatten
from secagg.prg import Stream
from tests.support.tiny import tiny_study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDIES / "phantom.toml")


@pytest.mark.parametrize(
    "field", [{"optimizer": "adamw"}, {"weight_decay": 0.1}, {"schedule": "cosine"}, {"warm_up": 3}, {"batch": 4}]
)
def test_fields_of_local_steps_are_refused_where_no_site_steps_by_itself(field: dict[str, object]) -> None:
    distributed = load_study(STUDIES / "lgg-distributed.toml")
    with pytest.raises(ConfigError, match=rf"\[training\] {next(iter(field))} = .* no site steps by itself"):
        distributed.replace(training=field)


def test_the_rate_grows_and_falls_by_its_place_among_all_local_steps(study: Study) -> None:
    plain = study.replace(study={"rounds": 4, "local_steps": 5, "lr": 2.0})
    assert [plain.terms.rate(number, 1) for number in (1, 4, 9)] == [2.0] * 3
    terms = plain.replace(training={"schedule": "cosine", "warm_up": 3}).terms
    rates = [terms.rate(number, step) for number in range(1, 5) for step in range(1, 6)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.5])
    assert rates[3] == max(rates) <= 2.0
    assert rates[10] == pytest.approx(1.0)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert terms.rate(9, 2) == rates[-1] > 0  # after burned rounds


def made(study: Study, size: tuple[int, ...], axes: int) -> Case:
    image = np.random.default_rng(1).random((1, *size), np.float32)
    label = np.zeros(size, np.uint8)
    label[2:5, 3:6, 2:4] = 1
    return Case("site-a", "p", "p", image, label, np.eye(4), (1.0, 1.0, 1.0), axes, 2)


@pytest.fixture
def tiny() -> Study:
    return tiny_study(mechanism="none", rounds=2, steps=3).replace(model={"channels": [4, 4]})


def test_adamw_steps_are_torchs_with_the_rate_and_decay_of_each_step() -> None:
    model, theirs = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    theirs.load_state_dict(model.state_dict())
    start = flatten(model)
    steps = PlainSteps(model, 0.5, 0.9, adaptive=True, decay=0.1)
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=0.5, weight_decay=0.1)
    for rate, gradient in ((0.1, torch.ones(4)), (0.02, torch.tensor([1.0, -2, 0, 3]))):
        steps.rate = optimiser.param_groups[0]["lr"] = rate
        steps.step(gradient)
        theirs.weight.grad, theirs.bias.grad = gradient[:3][None], gradient[3:]
        optimiser.step()
    np.testing.assert_allclose(start + steps.difference, flatten(theirs), rtol=1e-5)
    np.testing.assert_allclose(flatten(model), flatten(theirs), rtol=1e-5)


def test_the_corrected_adam_is_what_a_hand_calculates() -> None:
    """Two steps of one value: gradients 0.5 and 0.3 with noise of variance 0.16, betas 0.9 and 0.999."""
    value = torch.tensor([1.0])
    optimiser = CorrectedAdam([value], 0.1, 0.16)
    value.grad = torch.tensor([0.5])
    optimiser.step()  # mean 0.5, square 0.25, less 0.16 is 0.09: 0.1 * 0.5 / 0.3
    assert value.item() == pytest.approx(1 - 0.166667, abs=1e-5)
    value.grad = torch.tensor([0.3])
    optimiser.step()  # mean 0.075 / 0.19, square 0.00033975 / 0.001999 less 0.16 is below a tenth of 0.16: 0.016
    assert value.item() == pytest.approx(1 - 0.166667 - 0.1 * 0.394737 / 0.126491, abs=1e-5)


def test_a_private_adam_is_corrected_for_the_noise_of_its_own_gradients() -> None:
    """A step in which nobody is drawn: what it moves by follows from the noise alone, and from its public variance."""
    study = tiny_study().replace(training={"optimizer": "adamw"}, study={"lr": 0.01})
    model, terms = build_model(study), study.terms
    protection = study.mechanism.protection(terms)
    noise = noisy_gradient(list(model.parameters()), [], protection, Stream(b"n" * 32)).values
    variance = protection.variance(len(noise))
    assert noise.var().item() == pytest.approx(variance, rel=0.1)
    taken = study.mechanism.begin(model, terms)
    taken.at(0.01)
    taken.step([], {"noise": b"n" * 32}.__getitem__)
    moved = taken.update("site-a", "e", lambda purpose: bytes(32)).vector
    spread = np.sqrt(np.maximum(noise.numpy() ** 2 - variance, 0.1 * variance))
    np.testing.assert_allclose(moved, -0.01 * noise.numpy() / spread, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "dims"), [("unet-small", 2), ("dynunet", 2), ("segresnet", 3)], ids=["views", "deep", "deep volumes"]
)
def test_local_steps_of_batches_and_views_learn_and_repeat(network: str, dims: int, tiny: Study) -> None:
    deep = network != "unet-small"
    study = tiny.replace(
        study={"local_steps": 12 if dims == 2 else 4, "rounds": 1, "lr": 0.02},
        data={"dims": dims, "slices_per_patient": 1, "size": 16},
        model={"name": network, "channels": [4] if network == "segresnet" else [4, 8]},
        training={
            "optimizer": "adamw",
            "schedule": "cosine",
            "warm_up": 2,
            "batch": 4 if dims == 2 else 1,
            "augmentation": "full",
            "mirror": ["x", "y"],
            "deep_supervision": deep,
        },
    )
    data, model = load_site(None, "site-a", study), build_model(study)
    first = batch_loss(model.eval(), {"p": data.train}, study, Stream.seeded(1, "look"))
    taken = [local_steps(model, data, study, site="site-a", round_number=1) for _ in range(2)]
    moved = [steps.update("site-a", "", lambda _: bytes(32)).vector for steps in taken]
    assert np.array_equal(*moved)
    assign(model, flatten(model) + moved[0])
    assert batch_loss(model.eval(), {"p": data.train}, study, Stream.seeded(1, "look")) < first


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("augmentation", ["light", "full"])
def test_a_view_is_the_patients_own_and_keeps_the_labels(augmentation: str, dims: int, tiny: Study) -> None:
    study = tiny.replace(
        data={"dims": dims, "size": 16, "slices_per_patient": 1},
        training={"augmentation": augmentation, "mirror": ["x", "z"]},
    )
    shape = (16,) * dims
    images = torch.zeros(3, 2, *shape)
    images[:, :, 4:12, 4:12] = 1 + torch.rand(3, 2, 8, 8, *shape[2:], generator=torch.Generator().manual_seed(1))
    labels = (images[:, 0] > 0).long() * 2
    views = [viewed(images, labels, study, 2, Stream.seeded(seed, "view")) for seed in (1, 1, 2)]
    assert torch.equal(views[0][0], views[1][0])
    assert torch.equal(views[0][1], views[1][1])
    assert not torch.equal(views[0][0], views[2][0])
    for seen, said in views:
        assert (seen.shape, said.shape, said.dtype) == (images.shape, labels.shape, torch.int64)
        assert torch.isfinite(seen).all()
        assert set(said.unique().tolist()) <= {0, 2}
        inside = seen[:, 0][said == 2]
        assert inside.mean() > 0.7 > 0.3 > seen[:, 0][said == 0].mean()  # the label went along
    whole, classes = viewed(images, torch.tensor([0, 1, 1]), study, 2, Stream.seeded(1, "view"))
    assert whole.shape == images.shape
    assert classes.tolist() == [0, 1, 1]


def test_without_views_nothing_is_drawn_or_changed(tiny: Study) -> None:
    images, labels, stream = torch.rand(1, 1, 8, 8), torch.ones(1, 8, 8).long(), Stream.seeded(1, "view")
    seen, said = viewed(images, labels, tiny, 2, stream)
    assert (seen is images, said is labels) == (True, True)
    assert stream.integers(1, 1000)[0] == Stream.seeded(1, "view").integers(1, 1000)[0]


def test_axes_are_mirrored_by_their_names(tiny: Study) -> None:
    flat = tiny.replace(training={"mirror": ["x", "z"]})
    assert mirror_axes(flat, 2) == [2]  # of (k, C, x, y)
    assert mirror_axes(flat, 0) == [3]  # of (k, C, y, z)
    deep = tiny.replace(training={"mirror": ["y"]}, data={"dims": 3, "slices_per_patient": 1})
    assert mirror_axes(deep, 2) == [3]


def test_patches_are_of_the_study_and_every_third_looks_at_a_structure(tiny: Study) -> None:
    study = tiny.replace(data={"dims": 3, "size": 64, "patch": [16, 16, 16], "slices_per_patient": 1})
    case, hits = made(study, (64, 64, 64), 3), 0
    for seed in range(200):
        images, targets = batch_of(case, study, Stream.seeded(seed, "draw"))
        assert (images.shape, targets.shape) == ((1, 1, 16, 16, 16), (1, 16, 16, 16))
        hits += bool(targets.any())
    assert 200 / 3 - 25 < hits < 200 / 3 + 35
    flat = tiny.replace(data={"size": 64, "patch": [16, 32], "slices_per_patient": 2})
    assert batch_of(made(flat, (64, 64, 7), 2), flat, Stream.seeded(1, "draw"))[0].shape == (2, 1, 16, 32)


@pytest.mark.parametrize(("dims", "shape"), [(2, (40, 24, 3)), (3, (40, 24, 32))])
def test_windows_and_mirror_images_add_up_to_the_whole(dims: int, shape: tuple[int, ...], tiny: Study) -> None:
    study = tiny.replace(
        data={"dims": dims, "size": 64, "patch": [16] * dims, "slices_per_patient": 1},
        training={"mirror": ["x"], "test_flips": True},
    )

    class Voxelwise(torch.nn.Module):
        """Says 1 where the image is bright, every voxel by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = 20 * self.weight * (images - 0.5)
            return torch.cat([-bright, bright, *[torch.full_like(bright, -99)] * 6], 1)

    case = made(study, shape, dims)
    found = Segmentation(study).predict(Voxelwise(), case)
    assert np.array_equal(found, (case.image[0] > 0.5).astype(np.uint8))


def test_mirror_images_are_averaged(tiny: Study) -> None:
    study = tiny.replace(data={"size": 16}, training={"mirror": ["x"], "test_flips": True})
    model = build_model(study)
    image = np.random.default_rng(1).random((1, 16, 16, 1), np.float32)
    case = replace(made(study, (16, 16, 8), 2), image=image, label=None)
    there = Segmentation(study).probabilities(model, case)
    back = Segmentation(study).probabilities(model, replace(case, image=image[:, ::-1].copy()))
    np.testing.assert_allclose(there, back[:, ::-1], atol=1e-6)
    once = Segmentation(study.replace(training={"test_flips": False})).probabilities(model, case)
    assert np.abs(there - once).max() > 1e-3


@pytest.mark.parametrize(("dims", "spacing"), [(2, [2.0]), (3, [2.0, 2.0, 4.0])])
def test_a_fixed_spacing_grows_with_the_image_and_keeps_what_is_labelled(
    dims: int, spacing: list[float], tiny: Study
) -> None:
    data = tiny.replace(data={"dims": dims, "size": [16] * dims, "slices_per_patient": 1}).data
    data = data.model_copy(update={"spacing": tuple(spacing)})
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    inside = np.zeros((70, 40, 12), bool)
    inside[3:66, 4:9, 1:11] = True
    grid = grid_around(inside, affine, affine, data)
    assert grid.shape == (32, 16, 10 if dims == 2 else 16)
    np.testing.assert_allclose(grid.spacing[:2], 2.0, rtol=0.05)
    assert (grid.low[:2] <= [3, 4]).all()
    assert (grid.high[:2] >= [66, 9]).all()
    assert grid.stacked == (2 if dims == 2 else None)
    values = grid.resampled(grid.window(inside[None].astype(np.float32)))
    assert values.shape == (1, *grid.shape)
    voxel = np.prod(grid.spacing) / 4
    assert values.sum() * voxel == pytest.approx(inside.sum(), rel=0.1)


def test_a_box_of_the_studys_proportions_is_stretched_to_its_size(tiny: Study) -> None:
    data = tiny.data.model_copy(update={"dims": 3, "size": (32, 16, 16)})
    inside = np.zeros((40, 30, 20), bool)
    inside[5:25, 5:25, 5:15] = True
    grid = grid_around(inside, np.eye(4), np.eye(4), data)
    assert grid.shape == (32, 16, 16)
    assert tuple(grid.high - grid.low) == (40, 20, 20)


def test_hospitals_of_very_different_sizes_may_have_weights_like_that() -> None:
    weights = {site.id: site.weight for site in load_study(STUDIES / "lgg-plain.toml").sites}
    assert max(weights.values()) == 34 * min(weights.values())


def monais(study: Study, full: bool) -> Compose:
    """What views were made of until 0.8, one image at a time: nnU-Net's ranges in MONAI's transforms."""
    dims, view = study.data.dims, study.data.view
    same: dict[str, Any] = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    transforms: list[Any] = [
        RandAffined(
            **same,
            prob=0.5,
            rotate_range=[math.radians(30 if full else 8)] * (1 if dims == 2 else 3),
            scale_range=[(-0.3, 0.4) if full else (-0.1, 0.1)] * dims,
            translate_range=[0.05 * side for side in view],
        ),
        RandScaleIntensityd("image", 0.25 if full else 0.1, prob=0.3, channel_wise=True),
    ]
    if full:
        transforms += [  # MONAI's bends of slices enlarge by a fifth by mistake (6 knots over 5 spaces): taken back
            Rand2DElasticd(spacing=(24, 24), magnitude_range=(1, 2), prob=0.2, scale_range=[(0.2, 0.2)] * 2, **same)
            if dims == 2
            else Rand3DElasticd(sigma_range=(5, 7), magnitude_range=(50, 150), prob=0.2, **same),
            RandGaussianNoised("image", prob=0.15, std=0.1),
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            RandSimulateLowResolutiond(
                "image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bilinear" if dims == 2 else "trilinear"
            ),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    return Compose(transforms)


def seen_of(image: torch.Tensor, label: torch.Tensor) -> list[float]:
    """What can be measured of a view: where and how large the structure is, how bright, how uneven, how sharp."""
    places = label.nonzero().float()
    inside = image[0][label > 0]
    steps = torch.stack([image.diff(dim=axis).abs().mean() for axis in range(1, image.ndim)])
    return [
        *places.mean(0).tolist(),
        *places.std(0).tolist(),
        len(places),
        *inside.aminmax(),
        inside.mean(),
        steps.mean(),
    ]


@pytest.mark.parametrize(
    ("augmentation", "dims", "views"),
    [
        ("light", 2, 150),
        pytest.param("full", 2, 400, marks=pytest.mark.slow),
        pytest.param("light", 3, 150, marks=pytest.mark.slow),
        pytest.param("full", 3, 150, marks=pytest.mark.slow),
    ],
)
def test_views_are_distributed_as_monais(augmentation: str, dims: int, views: int, tiny: Study) -> None:
    study = tiny.replace(
        data={"dims": dims, "size": 32, "slices_per_patient": 1}, training={"augmentation": augmentation}
    )
    size = study.data.view
    label = torch.zeros(1, *size, dtype=torch.int64)
    label[(0, *(slice(side // 3, side // 2 + 4) for side in size))] = 1
    noise = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
    image = (0.2 + 0.6 * label[:, None] + 0.2 * noise).float()
    with torch.random.fork_rng():
        theirs = monais(study, augmentation == "full")
        theirs.set_random_state(seed=1)
        pair = {"image": image[0], "label": label.float()}
        expected = [seen_of(made["image"], made["label"][0]) for made in (theirs(dict(pair)) for _ in range(views))]
    many = viewed(
        image.repeat(views, *(1,) * (dims + 1)), label.repeat(views, *(1,) * dims), study, 2, Stream.seeded(1)
    )
    found = [seen_of(*one) for one in zip(*many, strict=True)]
    for ours, others in zip(np.transpose(found), np.transpose(expected), strict=True):
        assert ks_2samp(ours, others).pvalue > 1e-3
