"""What `fedseg data check` finds in a site's folder: everything that is wrong or odd, of all cases."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.data.cases import Case, split
from fedseg.data.layouts.nifti import entries, load_case
from fedseg.data.loading import given
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study


@dataclass(frozen=True)
class Finding:
    """One line of `fedseg data check`: `severity` is "error" (training would stop), "warning" or "info"."""

    severity: str
    where: str
    message: str


def check_site(folder: Path | None, site: str, study: Study) -> list[Finding]:
    """Everything that is wrong or odd with a site's folder, all cases, errors first."""
    if study.data.layout == "phantom":
        return [Finding("info", site, "is made by the package; there is nothing to check")]
    try:
        listed = entries(given(folder, study), study)
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
