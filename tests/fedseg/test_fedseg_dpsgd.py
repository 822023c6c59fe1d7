import math

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from opacus import GradSampleModule
from scipy.special import ndtri

from fedseg.privacy.dpsgd import (
    Grid,
    Protection,
    add_clipped,
    draw,
    noisy_gradient,
    plain_gradient,
    summed,
)
from secagg.prg import Stream

PATIENTS = [f"p{index}" for index in range(60)]
RATE = 0.2
DRAWS = 3000


@pytest.fixture
def model():
    torch.manual_seed(0)
    norm = ("GROUP", {"num_groups": 4})
    return UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=0, act="RELU", norm=norm)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 1, 16, 16, generator=generator), torch.randint(0, 2, (5, 16, 16), generator=generator)


def not_poisson(sampler):
    """Why draws cannot be independent coin flips at RATE, or nothing. False alarm: about 1 in 10,000 seeds."""
    stream = Stream.seeded(1, "sampler test")
    drawn = np.array(
        [[patient in taken for patient in PATIENTS] for taken in (set(sampler(stream)) for _ in range(DRAWS))]
    )
    sizes, variance = drawn.sum(axis=1), len(PATIENTS) * RATE * (1 - RATE)
    reasons = []
    if abs(sizes.mean() - len(PATIENTS) * RATE) > 4 * math.sqrt(variance / DRAWS):
        reasons.append("mean size")
    if abs(sizes.var() / variance - 1) > 4 * math.sqrt(2 / DRAWS):
        reasons.append("variance of the size")
    if np.abs(drawn.mean(axis=0) - RATE).max() > 4.8 * math.sqrt(RATE * (1 - RATE) / DRAWS):
        reasons.append("rate of one patient")
    pairs = np.corrcoef(drawn.T)[np.triu_indices(len(PATIENTS), 1)]
    if np.abs(pairs).max() > 5 / math.sqrt(DRAWS) or abs(pairs.mean()) > 4 / math.sqrt(DRAWS * len(pairs)):
        reasons.append("independence of two patients")
    steps = [np.corrcoef(drawn[:-1, index], drawn[1:, index])[0, 1] for index in range(len(PATIENTS))]
    if np.abs(steps).max() > 4.8 / math.sqrt(DRAWS):
        reasons.append("independence of two steps")
    return reasons


def test_patients_are_drawn_by_poisson_sampling():
    assert not_poisson(lambda stream: draw(PATIENTS, RATE, stream.words(8).tobytes())) == []


def test_the_sampler_test_catches_what_is_usually_called_poisson():
    def batches():
        while True:
            order = Stream().permutation(len(PATIENTS))
            yield from (order[start : start + 12] for start in range(0, len(order), 12))

    epochs = batches()
    shuffled = not_poisson(lambda stream: [PATIENTS[index] for index in next(epochs)])
    assert {"variance of the size", "independence of two steps"} <= set(shuffled)
    fixed_size = not_poisson(lambda stream: [PATIENTS[index] for index in stream.permutation(len(PATIENTS))[:12]])
    assert "variance of the size" in fixed_size


def test_everybody_or_possibly_nobody():
    assert draw(PATIENTS, 1.0, bytes(32)) == PATIENTS
    assert draw([], 0.5, bytes(32)) == []
    assert any(draw(["one"], 0.5, bytes([index] * 32)) == [] for index in range(64))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e30])
def test_one_patient_moves_the_sum_by_at_most_the_clip(scale):
    gradient = scale * torch.from_numpy(ndtri(Stream.seeded(2, "gradient").uniform(5000))).float()
    total = torch.zeros(5000)
    add_clipped(total, gradient, 0.05)
    length = float(torch.linalg.vector_norm(total, dtype=torch.float64))
    assert length == pytest.approx(min(0.05, float(torch.linalg.vector_norm(gradient.double()))), rel=1e-6)
    assert torch.nn.functional.cosine_similarity(total.double(), gradient.double(), dim=0) == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_neither_spreads_nor_stops(bad):
    total = torch.ones(4)
    add_clipped(total, torch.tensor([1.0, bad, 0.0, 2.0]), 0.05)
    assert torch.equal(total, torch.ones(4))


def test_many_slices_count_as_one_patient(model, images):
    parameters = list(model.parameters())
    image, label = images
    many = image.repeat(8, 1, 1, 1), label.repeat(8, 1, 1)
    losses = (1e4 * torch.nn.functional.cross_entropy(model(many[0]), many[1], reduction="sum") for _ in range(1))
    assert torch.linalg.vector_norm(summed(parameters, losses, 0.05)) <= 0.05 * (1 + 1e-6)


def rows(count, length, norm):
    """Gradients of patients, as losses of one parameter."""
    weights = torch.zeros(length, dtype=torch.float64, requires_grad=True)
    values = torch.from_numpy(ndtri(Stream.seeded(6, "rows").uniform(count * length))).reshape(count, length)
    values *= norm / torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return [weights], [(weights * row).sum() for row in values], values


def whole_steps(step, protection, length):
    """What a step gives before it is rounded to float32, in steps of the grid."""
    kept = []
    exact = torch.Tensor.float
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "float", lambda values: kept.append(values) or exact(values))
        step()
    return kept[-1].numpy() * protection.denominator / protection.grid(length).step


def is_a_float32_apart(total, noisy):
    """Mironov's question in its simplest form: could the noise have been a float32, added to this total?"""
    return np.mean((noisy - total).astype(np.float32) == noisy - total)


def test_low_bits_of_the_noise_tell_the_total_and_ours_has_none():
    protection, length = Protection(0.05, 1.0, 1), 2000
    grid = protection.grid(length)
    totals = []
    for count in (3, 2):
        here, losses, _ = rows(3, length, 0.05)
        totals.append(summed(here, losses[:count], 0.05).numpy())
    naive = totals[0] + (0.05 * ndtri(Stream.seeded(8, "naive").uniform(length))).astype(np.float32)
    assert is_a_float32_apart(totals[0], naive) > 0.9
    assert is_a_float32_apart(totals[1], naive) < 0.2  # so that one patient's presence shows, whatever the noise
    parameters, losses, _ = rows(3, length, 0.05)
    ours = whole_steps(
        lambda: noisy_gradient(parameters, losses, protection, Stream.seeded(8, "ours")), protection, length
    )
    assert np.array_equal(ours, np.rint(ours))  # whole steps, whoever was there
    assert math.frexp(grid.step)[0] == 0.5  # a power of two, so that multiples of it are exact


@pytest.mark.parametrize("length", [1, 7, 1000, 200_000])
@pytest.mark.parametrize("multiplier", [0.3, 1.0, 40.0, 1000.0])
def test_a_patients_whole_steps_are_never_longer_than_the_noise_is_made_for(length, multiplier):
    protection = Protection(0.05, multiplier, 1)
    grid = protection.grid(length)
    assert math.sqrt(grid.limit) * grid.step <= 0.05
    assert math.sqrt(grid.variance - 9) >= multiplier * math.sqrt(grid.limit)
    assert math.sqrt(grid.variance) * grid.step == pytest.approx(multiplier * 0.05, rel=0.01)
    values = torch.from_numpy(ndtri(Stream.seeded(7, "patient").uniform(length)))
    for scaled in (values, torch.ones(length), torch.eye(1, length)[0], 0.49 * grid.step * torch.ones(length)):
        own = scaled.double() * (0.05 / max(0.05, float(torch.linalg.vector_norm(scaled.double()))))
        whole = grid.rounded(own)
        assert torch.equal(whole, torch.round(whole))
        assert sum(int(value) ** 2 for value in whole.tolist()) <= grid.limit


def test_a_grid_too_coarse_for_its_values_still_keeps_the_limit():
    grid = Grid(1.0, 100, 1000)
    lengths = {399: 0.5, 4000: 0.158, 100: 1.0, 150: 0.81}  # 0.81 is shortened to 0.54, which rounds up
    for length, value in lengths.items():
        whole = grid.rounded(torch.full((length,), value).double())
        assert float((whole**2).sum()) <= 100


@pytest.mark.parametrize("length", [2000, 300_000])
def test_rounding_takes_little_of_a_gradient(length):
    parameters, losses, values = rows(1, length, 0.05)
    grid = Protection(0.05, 1.0, 1).grid(length)
    kept = summed(parameters, losses, 0.05, grid) * grid.step
    assert float(torch.linalg.vector_norm(kept - values[0])) < 0.05 * 0.05


def test_noise_of_the_step_is_clip_times_multiplier_over_the_denominator():
    weights = torch.zeros(100_000, requires_grad=True)
    step = noisy_gradient([weights], [], Protection(0.05, 3.0, 16), Stream.seeded(4, "noise")).values
    assert float(step.std()) == pytest.approx(3.0 * 0.05 / 16, rel=0.01)


def test_the_number_of_patients_changes_neither_noise_nor_divisor():
    weights = torch.zeros(1000, requires_grad=True)
    protection = Protection(1.0, 2.0, 16)
    noise_only = noisy_gradient([weights], [], protection, Stream.seeded(5, "noise")).values
    for patients in (39, 40):
        losses = ((weights * 0).sum() for _ in range(patients))
        assert torch.equal(
            noisy_gradient([weights], losses, Protection(1.0, 2.0, 16), Stream.seeded(5, "noise")).values, noise_only
        )


def test_without_a_clip_there_is_the_plain_mean(model, images):
    parameters = list(model.parameters())
    image, label = images
    losses = (torch.nn.functional.cross_entropy(model(image[k : k + 1]), label[k : k + 1]) for k in range(5))
    loop = plain_gradient(parameters, losses, 5)
    plain = torch.autograd.grad(torch.nn.functional.cross_entropy(model(image), label), parameters)
    assert torch.allclose(loop, torch.cat([gradient.flatten() for gradient in plain]), atol=1e-6)


def clipped_sum(per_patient, clip_norm):
    lengths = torch.linalg.vector_norm(per_patient, dim=1, keepdim=True)
    return (per_patient * (clip_norm / lengths).clamp(max=1)).sum(dim=0)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_the_loop_agrees_with_opacus_and_vmap(model, images):
    image, label = images
    parameters = list(model.parameters())
    scale = torch.tensor([1.0, 20.0, 0.1, 5.0, 1e-3])  # so that some are clipped and some are not

    def loss(logits, target):
        return torch.nn.functional.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2))

    losses = (scale[k] * loss(model(image[k : k + 1]), label[k : k + 1])[0] for k in range(5))
    loop = summed(parameters, losses, 0.5).float()

    def one(weights, pixels, target, factor):
        logits = torch.func.functional_call(model, weights, (pixels[None],))
        return factor * loss(logits, target[None])[0]

    weights = {name: value.detach() for name, value in model.named_parameters()}
    mapped = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))(weights, image, label, scale)
    per_patient = torch.cat([mapped[name].flatten(1) for name in weights], dim=1)
    assert torch.allclose(loop, clipped_sum(per_patient, 0.5), atol=1e-6)

    hooked = GradSampleModule(model, loss_reduction="sum")
    (scale * loss(hooked(image), label)).sum().backward()
    per_sample = torch.cat([parameter.grad_sample.flatten(1) for parameter in hooked.parameters()], dim=1)
    assert torch.allclose(loop, clipped_sum(per_sample, 0.5), atol=1e-6)


def test_untrained_and_unused_tensors_are_no_trouble(model, images):
    image, label = images
    trained = list(model.parameters())[-2:]
    extra = torch.ones(3, requires_grad=True)
    losses = (torch.nn.functional.cross_entropy(model(image), label) for _ in range(1))
    step = summed([*trained, extra], losses, 10.0).float()
    assert len(step) == sum(parameter.numel() for parameter in trained) + 3
    assert torch.equal(step[-3:], torch.zeros(3))
