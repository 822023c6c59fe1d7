"""What `fedseg data check` finds in a site's folder: everything that is wrong or odd, of all cases."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.data.cases import Case, split
from fedseg.data.declaration import agree
from fedseg.data.layouts.declarations import contradictions, declaration_of, other_names
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
    layout = layout_of(study)
    if not layout.needs_folder:
        return [Finding("info", site, "is made by the package; there is nothing to check")]
    try:
        listed = entries(folder, site, study)
        declared = layout.declared(folder or Path(), study)
        remarks = [*other_names(declared, site, study), *layout.remarks(folder or Path(), study)]
    except ConfigError as error:
        return [Finding("error", site, str(error))]
    findings = [Finding("error", site, f"{folder}: {sentence}") for sentence in contradictions(declared, site, study)]
    cases = []
    for entry in listed:
        remarks += [f"{entry.name}: {sentence}" for sentence in entry.remarks()]
        try:
            cases.append(entry.load(site, study))
        except CaseError as error:
            findings.append(Finding("error", site, str(error)))
    task = task_of(study)
    remarks += [f"{case.name}: {sentence}" for case in cases for sentence in task.odd(case)]
    remarks += _parts(cases, study)
    warnings = [Finding("warning", site, sentence) for sentence in remarks]
    return [*findings, *warnings, *_overview(site, cases, study)]


def check_between(folders: Mapping[str, Path | None], study: Study) -> list[Finding]:
    """What is wrong between sites whose folders are all at hand: what their indices declare differently."""
    found = {}
    for site, folder in folders.items():
        with suppress(ConfigError):  # what is wrong at one site is said by `check_site`
            if folder is not None and layout_of(study).needs_folder:
                found[site] = declaration_of(layout_of(study).declared(folder, study), site, study)
    try:
        agree(found, study)
    except ConfigError as error:
        return [Finding("error", "between sites", str(error))]
    return []


def _by_class(cases: list[Case], study: Study) -> str:
    counts = [sum(case.label == number for case in cases) for number in range(len(study.names))]
    return ", ".join(f"{count} {name}" for name, count in zip(study.names, counts, strict=True))


def _parts(cases: list[Case], study: Study) -> list[str]:
    """That the network sees parts of most images although the study names no `patch`: axes in another order, say."""
    if study.data.patch or not study.structures or not cases:
        return []
    planar = [[axis for axis in range(3) if case.axes == 3 or axis != case.slice_axis] for case in cases]
    extents = [[case.image.shape[1 + axis] for axis in axes] for case, axes in zip(cases, planar, strict=True)]
    usual = [int(side) for side in np.median(extents, axis=0)]
    if not any(side > seen for side, seen in zip(usual, study.data.view, strict=True)):
        return []
    whole, seen = (" x ".join(map(str, sides)) for sides in (usual, study.data.view))
    return [
        f"a usual image fills {whole} voxels of the working grid and the network sees {seen} at once: a part at "
        f"random. If that is meant say so, [data] patch = {list(study.data.view)}; else give [data] size = {usual}"
    ]


def _overview(site: str, cases: list[Case], study: Study) -> list[Finding]:
    if not cases:
        return []
    data = split(site, cases, study)
    spacings = np.array([case.spacing for case in cases])
    wide = f"working voxels {spacings.min():.2f} to {spacings.max():.2f} mm"
    return [
        Finding(
            "info",
            site,
            f"{len({case.patient for case in cases})} patients, {len(data.train)} cases to train and "
            f"{len(data.test)} to test; {wide if study.structures else _by_class(cases, study)}",
        )
    ]
