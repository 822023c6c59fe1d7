"""What every phantom is: a generator of made patients, by hospital and seed, for the studies that it fits.

A hospital is a profile: its scanner and its habits. Five are the sites of studies on phantoms. One more, `PUBLIC`, is
no site's, so that what it makes may be trained on and shown for free. No result on a phantom is a clinical result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedseg.data.cases import Case
from fedseg.study import Study
from secagg.prg import Stream

Array: TypeAlias = NDArray[np.float32]

HOSPITALS = ("A", "B", "C", "D", "E")
PUBLIC = "pretrain"
WAVES = 8  # in a random field


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What all hospitals have.

    Attributes:
        name: one of `HOSPITALS`, or `PUBLIC`; part of the seed of every patient.
        snr: bright tissue over the standard deviation of the noise in each quadrature channel.
        bias: strength of the uneven receive field.
    """

    name: str
    snr: float
    bias: float


AnyProfile = TypeVar("AnyProfile", bound=Profile)


@dataclass(frozen=True)
class Phantom(Generic[AnyProfile]):
    """A generator of made patients.

    Attributes:
        name: part of the seed of every site's patients.
        version: raised whenever a seed gives another image or label map; shipped starts are found by it.
        fits: whether a study's structures, channels and dims are those of the phantom.
        wish: what such a study has, for people.
        profiles: the hospitals by name.
        public: the hospital that is no site's, as a study may see it.
        make: the patient of a hospital with a seed, 0 to 2^64 - 1, on the study's working grid.
        at_spacing: whether the grid then has the study's spacing, and not a block's sides stretched to its size.
    """

    name: str
    version: int
    fits: Callable[[Study], bool]
    wish: str
    profiles: Mapping[str, AnyProfile]
    public: Callable[[Study], AnyProfile]
    make: Callable[[AnyProfile, int, Study], Case]
    at_spacing: bool = False

    def public_cases(self, seeds: list[int], study: Study) -> list[Case]:
        """Patients of the public hospital."""
        profile = self.public(study)
        return [self.make(profile, seed, study) for seed in seeds]

    def site_seeds(self, site: str, patients: int, cohort: int) -> list[int]:
        """A seed for each patient of a site; those of two sites differ, even where both are one hospital.

        Args:
            site: the site's id.
            patients: how many.
            cohort: seed of all sites' patients together.
        """
        return [int(seed) for seed in Stream.seeded(cohort, f"{self.name} site", site).words64(patients)]

    def site_case(self, site: str, patient: str, seed: int, study: Study) -> Case:
        """One patient of a site of the study, whose n-th is the n-th hospital."""
        profile = self.profiles[HOSPITALS[study.site_ids.index(site) % len(HOSPITALS)]]
        return replace(self.make(profile, seed, study), site=site, patient=patient, name=f"{site}/{patient}")


def by_name(*profiles: AnyProfile) -> dict[str, AnyProfile]:
    """Profiles by their names."""
    return {profile.name: profile for profile in profiles}


def rician(signal: Array, sigma: float, stream: Stream) -> Array:
    """The magnitude of a real signal with Gaussian noise (standard deviation sigma) in both quadrature channels."""
    uniform = ((stream.words(2 * signal.size) >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(
        2**-23
    )
    noise = (ndtri(uniform) * np.float32(sigma)).reshape(2, *signal.shape)
    magnitude: Array = np.hypot(signal + noise[0], noise[1])
    return magnitude


def waves(points: NDArray[np.floating[Any]], stream: Stream, low: float, high: float) -> Array:
    """A smooth random field with values of about -1 to 1: waves of `low` to `high` radians per unit length."""
    chance = stream.uniform(5 * WAVES).reshape(5, WAVES)
    along = ndtri(chance[:3])
    along *= (low + (high - low) * chance[3]) / np.linalg.norm(along, axis=0)
    phase = np.tensordot(along.T.astype(np.float32), points, axes=1)
    phase += (2 * np.pi * chance[4]).astype(np.float32)[:, None, None, None]
    field: Array = np.sin(phase).sum(axis=0) / np.float32(np.sqrt(WAVES / 2))
    return field
