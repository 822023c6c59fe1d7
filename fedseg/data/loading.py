"""A site's images, read, normalised and split by patient. Nothing here is ever sent.

Loading stops at the first error. With differential privacy it goes on without that case and says so here, because a
site that stays away would tell that such a patient is there.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fedseg.data.cases import Case, SiteData, split
from fedseg.data.declaration import Declaration, agree
from fedseg.data.layouts.declarations import contradictions, declaration_of
from fedseg.data.layouts.layout import Entry
from fedseg.data.layouts.patients import Alike
from fedseg.data.layouts.table import entries, layout_of
from fedseg.errors import CaseError, ConfigError, SiteWarning
from fedseg.privacy.delta import too_large
from fedseg.study import Study
from fedseg.tasks.table import task_of


def load_cohort(data_dir: Path | None, study: Study) -> dict[str, SiteData]:
    """Every site's data by site id, from `data_dir/<site id>/`; layouts of made patients need no folder.

    Warns where delta is not below 1/patients.

    Raises:
        ConfigError, CaseError: as `load_site`; or the sites' files declare structures or channels differently.
    """
    for site in study.site_ids:  # before the first, which may take minutes
        if data_dir is not None and layout_of(study).needs_folder and not (data_dir / site).is_dir():
            raise ConfigError(f"{data_dir / site}: there is no such folder; --data has one subfolder per site")
    if data_dir is not None and layout_of(study).needs_folder:
        agree({site: declared_at(data_dir / site, site, study) for site in study.site_ids}, study)
    cohort = {site: load_site(None if data_dir is None else data_dir / site, site, study) for site in study.site_ids}
    patients = sum(len({case.patient for case in (*data.train, *data.test)}) for data in cohort.values())
    if study.trust.claims_epsilon and (said := too_large(study.privacy.delta, patients)):
        warnings.warn(f"[privacy] {said}", SiteWarning, stacklevel=2)
    return cohort


def load_site(folder: Path | None, site: str, study: Study) -> SiteData:
    """One site's cases, split by patient; `folder` is the site's own folder, None where the layout needs none.

    With differential privacy a case that cannot be used is left out, with a warning, and a site may have nobody.

    Raises:
        ConfigError: the site is not in the study, its folder or index is missing, it lists nobody without privacy,
            names could be one person's without privacy, or its index contradicts the study.
        CaseError: without privacy, a file is missing, damaged or inconsistent.
    """
    if site not in study.site_ids:
        raise ConfigError(f"site '{site}' is not in the study; use one of {', '.join(study.site_ids)}")
    listed = entries(folder, site, study)
    declared = Declaration() if folder is None else declared_at(folder, site, study)
    unsaid = tuple(sorted({entry.patient for entry in listed if isinstance(entry, Alike)}))
    data = replace(split(site, list(_cases(listed, site, study)), study), declared=declared, unsaid=unsaid)
    task = task_of(study)
    if lost := [(case, said[0]) for case in (*data.train, *data.test) if (said := task.lost(case))]:
        case, first = lost[0]
        told = f"{len(lost)} label maps lose or change structures on the working grid; of {case.name} {first}"
        warnings.warn(f"[{site}] {told}. `fedseg data check` lists them all", SiteWarning, stacklevel=2)
    if not data.train:
        warnings.warn(
            f"[{site}] nobody is in training: this site's updates will hold no patient", SiteWarning, stacklevel=2
        )
    return data


def declared_at(folder: Path, site: str, study: Study) -> Declaration:
    """What a site's index calls the study's structures and channels.

    Raises:
        ConfigError: it contradicts the study; or as `entries`.
    """
    declared = layout_of(study).declared(folder, study)
    if said := contradictions(declared, site, study):
        raise ConfigError(f"{folder}: {said[0]}")
    return declaration_of(declared, site, study)


def _cases(listed: list[Entry], site: str, study: Study) -> Iterator[Case]:
    for said in dict.fromkeys(entry.why for entry in listed if isinstance(entry, Alike)):
        warnings.warn(f"[{site}] left out: {said}", SiteWarning, stacklevel=2)
    for entry in listed:
        if isinstance(entry, Alike):
            continue
        try:
            yield entry.load(site, study)
        except CaseError as error:
            if not study.trust.claims_epsilon:
                raise
            warnings.warn(f"[{site}] left out: {error}", SiteWarning, stacklevel=2)
