"""One site of a small real study, and what it sends: the network, images and steps of the product."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from audits.dp.games import signed
from fedseg.data.cases import Case, SiteData
from fedseg.data.loading import load_cohort
from fedseg.models import build_model
from fedseg.study import Study, parse_study
from fedseg.train import local_steps
from fedseg.update import NoiseShared
from secagg.encoding import digest

SITE = "site-a"


def study_of(mechanism: str, seed: int | None, *, rounds: int = 2, sample_rate: float = 1.0) -> Study:
    """A network of a thousand weights on made brains of 32 pixels, one step a round."""
    members = "\n".join(f'[[sites]]\nid = "site-{letter}"\npatients = 4' for letter in "abc")
    return parse_study(
        f"""
        [study]
        name = "conformance"
        structures = ["external CSF", "grey matter", "white matter", "ventricles", "cerebellum", "deep grey matter",
            "brainstem"]
        rounds = {rounds}
        local_steps = 1
        lr = 1.0
        {"" if seed is None else f"seed = {seed}"}
        [data]
        layout = "phantom"
        modality = ["T2w"]
        dims = 2
        size = 32
        slices_per_patient = 3
        holdout = 0.0
        [model]
        name = "unet-small"
        channels = [4, 8]
        [privacy]
        mechanism = "{mechanism}"
        epsilon = 8.0
        delta = 1e-2
        sample_rate = {sample_rate}
        {"released = 0.1" if mechanism == "svt" else "clip_norm = 0.1"}
        denominator = 2
        [secagg]
        {"" if mechanism == "distributed" else "clip_range = 8.0"}
        {members}
        """,
        "the study of conformance tests",
    )


def studies(seed: int) -> Mapping[str, Study]:
    """One of each mechanism with a clip norm."""
    return {mechanism: study_of(mechanism, seed) for mechanism in ("local", "distributed")}


@lru_cache(maxsize=1)
def _cohort() -> Mapping[str, SiteData]:
    return load_cohort(None, study_of("local", 1))


def site_of(study: Study) -> SiteData:
    """The site's patients, the same for every study here."""
    return _cohort()[SITE]


def one_more(data: SiteData, cases: Sequence[Case]) -> SiteData:
    """The site with one patient more, who has these cases."""
    return replace(data, train=(*data.train, *(replace(case, patient="one more") for case in cases)))


def sent(study: Study, data: SiteData, *, round_number: int = 1, site: str = SITE) -> NDArray[np.float64]:
    """What leaves the site after a round, before it is masked: weights, or signed whole numbers."""
    model = build_model(study)
    steps = local_steps(model, data, study, site=site, round_number=round_number)
    update = steps.update(site, "audit", lambda purpose: digest("audit", purpose, site, round_number))
    if isinstance(update, NoiseShared):
        return signed(update.vector, study.secagg.bits).astype(np.float64)
    return update.vector.astype(np.float64)
