"""A site's images: found, checked, normalised, split by patient. Nothing here is ever sent.

`check_site` collects what is wrong for `fedseg data check`. Loading stops at the first error; with differential privacy
it goes on without that case and says so here, because a site that stays away would tell that such a patient is there.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.data.cases import Case, SiteData, split
from fedseg.data.layouts import Entry, entries, load_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study


@dataclass(frozen=True)
class Finding:
    """One line of `fedseg data check`: `severity` is "error" (training would stop), "warning" or "info"."""

    severity: str
    where: str
    message: str


def load_cohort(data_dir: Path | None, study: Study) -> dict[str, SiteData]:
    """Every site's data by site id, from `data_dir/<site id>/`; layout "phantom" needs no folder.

    Warns where delta is not below 1/patients.

    Raises:
        ConfigError, CaseError: as `load_site`.
    """
    for site in study.site_ids:  # before the first, which may take minutes
        if data_dir is not None and study.data.layout != "phantom" and not (data_dir / site).is_dir():
            raise ConfigError(f"{data_dir / site}: there is no such folder; --data has one subfolder per site")
    cohort = {site: load_site(None if data_dir is None else data_dir / site, site, study) for site in study.site_ids}
    patients = sum(len({case.patient for case in (*data.train, *data.test)}) for data in cohort.values())
    if study.private and study.privacy.delta is not None and study.privacy.delta * patients >= 1:
        warnings.warn(
            f"[privacy] delta = {study.privacy.delta:g} is not below 1/{patients} (one over the patients), which "
            "would allow publishing one patient; choose a tenth of that",
            stacklevel=2,
        )
    return cohort


def load_site(folder: Path | None, site: str, study: Study) -> SiteData:
    """One site's cases, split by patient; `folder` is the site's own folder, None with layout "phantom".

    With differential privacy a case that cannot be used is left out, with a warning, and a site may have nobody.

    Raises:
        ConfigError: the site is not in the study, its folder or index is missing, or it lists nobody without privacy.
        CaseError: without privacy, a file is missing, damaged or inconsistent.
    """
    member = next((candidate for candidate in study.sites if candidate.id == site), None)
    if member is None:
        raise ConfigError(f"site '{site}' is not in the study; use one of {', '.join(study.site_ids)}")
    if member.patients is not None:
        from fedseg.data.phantom import COHORT, phantom_site

        data = phantom_site(site, study, member.patients, COHORT)
    else:
        data = split(site, list(_cases(entries(_given(folder, study), study), site, study)), study)
    if not data.train:
        warnings.warn(f"[{site}] nobody is in training: this site's updates will hold no patient", stacklevel=2)
    return data


def _cases(listed: list[Entry], site: str, study: Study) -> Iterator[Case]:
    for entry in listed:
        try:
            yield load_case(entry, site, study)
        except CaseError as error:
            if not study.private:
                raise
            warnings.warn(f"[{site}] left out: {error}", stacklevel=2)


def check_site(folder: Path | None, site: str, study: Study) -> list[Finding]:
    """Everything that is wrong or odd with a site's folder, all cases, errors first."""
    if study.data.layout == "phantom":
        return [Finding("info", site, "is made by the package; there is nothing to check")]
    try:
        listed = entries(_given(folder, study), study)
    except ConfigError as error:
        return [Finding("error", site, str(error))]
    findings, cases = [], []
    for entry in listed:
        try:
            cases.append(load_case(entry, site, study))
        except CaseError as error:
            findings.append(Finding("error", site, str(error)))
    for case in cases:
        findings += _odd(case, study)
    return [*findings, *_overview(site, cases, study)]


def _given(folder: Path | None, study: Study) -> Path:
    if folder is None:
        raise ConfigError(f"[data] layout = '{study.data.layout}' needs images: give their folder with --data")
    return folder


def _odd(case: Case, study: Study) -> list[Finding]:
    present = np.unique(case.label) if case.label is not None else np.array([])
    absent = [name for value, name in enumerate(study.structures, start=1) if value not in present]
    if len(absent) == len(study.structures):
        return [Finding("warning", case.site, f"{case.name}: the label map is empty; is that so?")]
    return [Finding("warning", case.site, f"{case.name}: has no {name}") for name in absent]


def _overview(site: str, cases: list[Case], study: Study) -> list[Finding]:
    if not cases:
        return []
    data = split(site, cases, study)
    spacings = np.array([case.spacing for case in cases])
    return [
        Finding(
            "info",
            site,
            f"{len({case.patient for case in cases})} patients, {len(data.train)} cases to train and "
            f"{len(data.test)} to test; working voxels {spacings.min():.2f} to {spacings.max():.2f} mm",
        )
    ]
