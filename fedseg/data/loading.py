"""A site's images, read, normalised and split by patient. Nothing here is ever sent.

Loading stops at the first error. With differential privacy it goes on without that case and says so here, because a
site that stays away would tell that such a patient is there.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

from fedseg.data.cases import Case, SiteData, split
from fedseg.data.layouts.nifti import Entry, entries, load_case
from fedseg.data.phantoms.table import phantom_of
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study

COHORT = 1  # seed of a study's made patients


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
    if study.trust.claims_epsilon and study.privacy.delta is not None and study.privacy.delta * patients >= 1:
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
        phantom = phantom_of(study, "[data] layout = 'phantom'", "change those or give real images with another layout")
        data = split(site, phantom.site_cases(site, study, member.patients, COHORT), study)
    else:
        data = split(site, list(_cases(entries(given(folder, study), study), site, study)), study)
    if not data.train:
        warnings.warn(f"[{site}] nobody is in training: this site's updates will hold no patient", stacklevel=2)
    return data


def _cases(listed: list[Entry], site: str, study: Study) -> Iterator[Case]:
    for entry in listed:
        try:
            yield load_case(entry, site, study)
        except CaseError as error:
            if not study.trust.claims_epsilon:
                raise
            warnings.warn(f"[{site}] left out: {error}", stacklevel=2)


def given(folder: Path | None, study: Study) -> Path:
    """The site's folder.

    Raises:
        ConfigError: none was given and the layout needs one.
    """
    if folder is None:
        raise ConfigError(f"[data] layout = '{study.data.layout}' needs images: give their folder with --data")
    return folder
