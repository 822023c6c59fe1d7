"""What `fedseg data check` finds in a site's folder: everything that is wrong or odd, of all cases."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.data.cases import Case, split
from fedseg.data.layouts.table import entries, layout_of
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study
from fedseg.tasks.table import task_of


@dataclass(frozen=True)
class Finding:
    """One line of `fedseg data check`: `severity` is "error" (training would stop), "warning" or "info"."""

    severity: str
    where: str
    message: str


def check_site(folder: Path | None, site: str, study: Study) -> list[Finding]:
    """Everything that is wrong or odd with a site's folder, all cases, errors first."""
    if not layout_of(study).needs_folder:
        return [Finding("info", site, "is made by the package; there is nothing to check")]
    try:
        listed = entries(folder, site, study)
    except ConfigError as error:
        return [Finding("error", site, str(error))]
    findings, cases = [], []
    for entry in listed:
        try:
            cases.append(entry.load(site, study))
        except CaseError as error:
            findings.append(Finding("error", site, str(error)))
    task = task_of(study)
    odd = [Finding("warning", site, f"{case.name}: {sentence}") for case in cases for sentence in task.odd(case)]
    return [*findings, *odd, *_overview(site, cases, study)]


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
