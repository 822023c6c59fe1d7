"""What divides a sum, and how large the noise is, do not move with one patient more; nor does another patient's part.

A patient whose gradient is no number adds nothing. So a site with so many more of them has to send the same, bit for
bit: whatever counts patients would show.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from audits.base import Result, Task
from audits.conformance.clip import PATIENTS
from audits.conformance.testing import Tried, concluded, exact
from audits.conformance.training import one_more, sent, site_of, studies, study_of
from fedseg.data.cases import SiteData
from fedseg.mechanisms import local
from fedseg.privacy.dpsgd import NoisedGradient, Protection, noisy_gradient
from fedseg.study import Study
from secagg.prg import Stream


def audit(task: Task) -> Result:
    """Silent patients at both mechanisms, at every size of a site, and with half of the patients drawn."""
    tried: dict[str, float] = {}
    for name, study in studies(task.seed).items():
        task.progress(f"{name}: patients who add nothing")
        tried |= {f"{name}: {what}": p for what, p in tests(study).items()}
        half = study_of(name, task.seed, sample_rate=0.5)
        tried |= {f"{name}, half drawn: {what}": p for what, p in tests(half).items()}
    bugs = {
        "divided by how many were drawn": lambda: _planted(task.seed, by_the_drawn),
        "noise for as many as were drawn": lambda: _planted(task.seed, noise_by_the_drawn),
    }
    return concluded("Divisor and noise, with one patient more", tried, bugs, {"seed": task.seed})


def tests(study: Study) -> Tried:
    """Sites of none to all patients, each with and without a silent one; and one patient's part among others."""
    data, silent = site_of(study), PATIENTS["pixels that are no numbers"]
    same = {}
    for count in (0, 1, len(data.train)):
        some = SiteData(data.site, data.train[:count], ())
        more = one_more(some, silent(data.train[0]))
        same[f"{count} patients and one who adds nothing send the same"] = exact(
            bool(np.array_equal(sent(study, some), sent(study, more)))
        )
    alone = SiteData(data.site, (), ())
    number = next(number for number in range(1, 65) if _part(study, alone, number).any())  # where the patient is drawn
    first, last = _part(study, alone, number), _part(study, data, number)
    close = (
        np.array_equal(first, last) if study.privacy.mechanism == "distributed" else np.allclose(first, last, atol=2e-6)
    )
    return {**same, "a patient adds the same alone and among others": exact(bool(close))}


def _part(study: Study, data: SiteData, number: int) -> NDArray[np.float64]:
    """What an ordinary patient adds in a round of these others."""
    more = one_more(data, [site_of(study).train[0]])
    return sent(study, more, round_number=number) - sent(study, data, round_number=number)


def _planted(seed: int, bug: Callable[[], object]) -> Tried:
    with bug():  # type: ignore[attr-defined]
        return tests(studies(seed)["local"])


@contextmanager
def by_the_drawn() -> Iterator[None]:
    """The sum is divided by the number of losses, as a mean over a batch is."""
    with _counting(
        lambda protection, count: Protection(protection.clip_norm, protection.noise_multiplier, max(1, count))
    ):
        yield


@contextmanager
def noise_by_the_drawn() -> Iterator[None]:
    """What Opacus does with len(dataset) x sample_rate: the number of patients shows in the noise."""
    with _counting(
        lambda protection, count: Protection(
            protection.clip_norm, protection.noise_multiplier / max(1, count), protection.denominator
        )
    ):
        yield


@contextmanager
def _counting(changed: Callable[[Protection, int], Protection]) -> Iterator[None]:
    honest = noisy_gradient

    def counted(
        parameters: list[torch.Tensor],
        losses: Iterator[torch.Tensor],
        protection: Protection,
        stream: Stream,
        *rest: object,
    ) -> NoisedGradient:
        """Divides as a site would that counts its own patients."""
        each = list(losses)
        return honest(parameters, each, changed(protection, len(each)), stream, *rest)  # type: ignore[arg-type]

    with patch.object(local, "noisy_gradient", counted):
        yield
