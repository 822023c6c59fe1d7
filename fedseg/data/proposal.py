"""A first study from what a folder holds: its layout, sites, modalities, label values or classes, found in its files.

What only people can decide is left to them: the study that is proposed makes no privacy claim. It holds no number of
patients, because everybody in the federation reads it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedseg.data.layouts.decathlon import IGNORE
from fedseg.data.layouts.dicom import DicomEntry
from fedseg.data.layouts.files import FileEntry, listed
from fedseg.data.layouts.labels import whole_numbers
from fedseg.data.layouts.medmnist import RowEntry
from fedseg.data.layouts.nifti import nifti_shape, read_nifti
from fedseg.data.layouts.pictures import PictureEntry
from fedseg.data.layouts.series import segments_in
from fedseg.data.layouts.table import LAYOUTS, PICTURES
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study, parse_study

SITE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
SITES = 3  # the fewest whose sum shows nobody
SMALLEST, LARGEST, STEP = 32, 96, 16
GUESSED = ("bids", "decathlon", "nnunet", "table", "brats")
BRATS: Mapping[tuple[int, ...], list[list[int]]] = {
    (1, 2, 4): [[1, 2, 4], [1, 4], [4]],
    (1, 2, 3): [[1, 2, 3], [1, 3], [3]],
}
"""Label values of BraTS up to 2021 and since 2023: whole tumour, tumour core, enhancing tumour."""


@dataclass(frozen=True)
class Proposal:
    """What a folder holds.

    Attributes:
        layout: of `[data] layout`.
        modality: names of the channels.
        sites: each site's folder by its id; one that is the folder itself, if it is one hospital's.
        structures: names, and the label values of each in the files; none of pictures with a class.
        text: the study in TOML.
        classes: of pictures; none with structures.
    """

    layout: str
    modality: tuple[str, ...]
    sites: Mapping[str, Path]
    structures: Mapping[str, Sequence[int]]
    text: str
    classes: tuple[str, ...] = field(default=())

    @property
    def study(self) -> Study:
        """The text, checked."""
        return parse_study(self.text, "proposal")


class Found(NamedTuple):
    """Layout, channels, the folder of each site, and what pictures are of."""

    layout: str
    modality: tuple[str, ...]
    sites: Mapping[str, Path]
    classes: tuple[str, ...] = ()


def proposed(folder: Path, name: str) -> Proposal:
    """The study that a folder's files suggest.

    Args:
        folder: one hospital's own, or with one subfolder for each site.
        name: of the study.

    Raises:
        ConfigError: there is no such folder, no layout fits it, or its sites differ.
        CaseError: a label map cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give the folder that holds the images")
    found = _sites(folder)
    layout, modality, sites, classes = found
    if bad := [site for site in sites if not re.fullmatch(SITE, site)]:
        raise ConfigError(
            f"{folder}: a site is called as its folder, and '{bad[0]}' cannot be an id; rename the folder to at most "
            "64 ASCII letters, digits, '.', '_' or '-'"
        )
    if classes:
        return _of_pictures(name, found)
    plain = parse_study(_toml(_content(name, layout, modality, {"structure-1": [1]}, sites), len(sites)), "proposal")
    listed_here = [entry for site, place in sites.items() for entry in LAYOUTS[layout].entries(place, site, plain)]
    cases = [entry for entry in listed_here if isinstance(entry, FileEntry | DicomEntry)]
    structures = _structures(layout, cases, sites, plain)
    content = _content(name, layout, modality, structures, sites)
    content["data"]["size"] = _size(cases)
    return Proposal(layout, modality, sites, structures, _toml(content, len(sites)))


def _sites(folder: Path) -> Found:
    """A radiograph is DICOM too, and a folder of scans may have pictures beside them: hence the order."""
    if found := _fitting(folder, GUESSED) or _pictures(folder) or _fitting(folder, ("dicom",)):
        return found
    raise ConfigError(
        f"{folder}: no layout fits it; arrange it as one of {', '.join((*GUESSED, 'dicom', *PICTURES))} "
        "(docs/study.md), the simplest of which is a table cases.csv"
    )


def _fitting(folder: Path, layouts: Sequence[str]) -> Found | None:
    for layout in layouts:
        if modality := LAYOUTS[layout].modalities(folder):
            return Found(layout, modality, {folder.resolve().name: folder})
    for layout in layouts:
        found = {site: LAYOUTS[layout].modalities(place) for site, place in _folders(folder).items()}
        found = {site: modality for site, modality in found.items() if modality}
        if found:
            return Found(layout, _common(folder, found), {site: folder / site for site in found})
    return None


def _pictures(folder: Path) -> Found | None:
    """Pictures of a class each. Folders are sites where those in them are called alike, else they are classes."""
    for layout, pictures in PICTURES.items():
        found = {site: pictures.modalities(place) for site, place in _folders(folder).items()}
        found = {site: modality for site, modality in found.items() if modality}
        named = [{name.casefold(): name for name in pictures.classes(folder / site)} for site in found]
        whole = pictures.modalities(folder)
        classes = pictures.classes(folder) if whole else ()
        if found and (len(found) > 1 or len(classes) < 2) and len(set.intersection(*map(set, named))) > 1:
            everywhere = {key: name for names in sorted(named, key=len) for key, name in names.items()}
            return Found(
                layout,
                _common(folder, found),
                {site: folder / site for site in found},
                tuple(
                    sorted(
                        everywhere.values(), key=lambda name: (len(name), name) if layout == "medmnist" else (0, name)
                    )
                ),
            )
        if len(classes) > 1:
            return Found(layout, whole, {folder.resolve().name: folder}, classes)
    return None


def _folders(folder: Path) -> Mapping[str, Path]:
    return {path.name: path for path in listed(folder, "*") if path.is_dir()}


def _common(folder: Path, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The modalities that every site has."""
    common = set.intersection(*(set(modality) for modality in found.values()))
    if not common:
        said = "; ".join(f"{site} {', '.join(modality)}" for site, modality in found.items())
        raise ConfigError(f"{folder}: the sites have no modality in common: {said}; give each its own study")
    return tuple(one for one in next(iter(found.values())) if one in common)


def _of_pictures(name: str, found: Found) -> Proposal:
    """A study of pictures; one file that every site has is dealt to them."""
    layout, sites = found.layout, found.sites
    content = _content(name, layout, found.modality, {}, sites)
    study, data = content["study"], content["data"]
    del study["structures"], data["slices_per_patient"], data["size"]
    content["study"] = {"name": name, "task": "classification", "classes": list(found.classes)} | study
    if layout == "medmnist" and len(sites) > 1:
        files = {sha256(path.read_bytes()).digest() for place in sites.values() for path in place.glob("*.npz")}
        data |= {"rows": "dealt" if len(files) == 1 else "own"}
    content["data"] = data | {"size": SMALLEST}
    content = {"study": content["study"], "data": content["data"], "model": {"name": "cnn-small"}} | content
    plain = parse_study(_toml(content, len(sites)), "proposal")
    content["data"]["size"] = _side(_sides(found, plain))
    return Proposal(layout, found.modality, sites, {}, _toml(content, len(sites)), found.classes)


def _sides(found: Found, study: Study) -> list[int]:
    """The longer side of the first pictures that can be read."""
    sides: list[int] = []
    for site, place in found.sites.items():
        for entry in islice(LAYOUTS[found.layout].entries(place, site, study), SITES):
            with suppress(CaseError):
                sides += [max(entry.scan(study).image.shape[1:3])] if isinstance(entry, PictureEntry | RowEntry) else []
    return sides


def _structures(
    layout: str, cases: Sequence[FileEntry | DicomEntry], sites: Mapping[str, Path], study: Study
) -> Mapping[str, Sequence[int]]:
    """Names with their label values: as an index declares them, and for what it does not name, 'structure-V'."""
    values: set[int] = set()
    named: dict[str, Sequence[int]] = {}
    for case in cases:
        if case.label.name.endswith(".dcm"):
            for segment in segments_in(case.label):  # known by their names: a SEG's numbers are its own
                named.setdefault(segment, [len(named) + 1])
        elif case.label.exists():
            found = whole_numbers(read_nifti(case.label).values)
            values |= {int(value) for value in np.unique(found[np.isfinite(found)]) if value > 0}
    if layout == "brats" and (known := BRATS.get(tuple(sorted(values)))):
        return dict(zip(("whole tumour", "tumour core", "enhancing tumour"), known, strict=True))
    for site, place in sites.items():
        declared = dict(LAYOUTS[layout].declared(place, study).labels or {})
        if ignored := declared.pop(IGNORE, None):
            raise ConfigError(
                f"{site}: dataset.json declares label {ignored[0]} to be ignored, and every voxel is trained on here; "
                "draw what it stands for, or write background there"
            )
        for name, those in declared.items():
            if named.setdefault(name, those) != those:
                raise ConfigError(f"{site}: '{name}' is {list(those)}, elsewhere {list(named[name])}; correct either")
    known_values = {value for those in named.values() for value in those}
    named.update((f"structure-{value}", [value]) for value in sorted(values - known_values))
    if not named:
        raise ConfigError("no label map has a structure: there is nothing to learn; add the label maps")
    return dict(sorted(named.items(), key=lambda item: (-len(item[1]), min(item[1]))))


def _size(cases: Sequence[FileEntry | DicomEntry]) -> int:
    """Side of the working grid: the widest plane of the first images, a multiple of 16 from 32 to 96."""
    files = [case.images[0] for case in cases[:SITES] if case.images[0].is_file()]
    wide = max((max(sorted(nifti_shape(path)[:3])[1:]) for path in files), default=64)
    return _side([wide])


def _side(sides: Sequence[int]) -> int:
    return min(max(-(-max(sides, default=64) // STEP) * STEP, SMALLEST), LARGEST)


def _content(
    name: str, layout: str, modality: Sequence[str], structures: Mapping[str, Sequence[int]], sites: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    labels = [list(those) for those in structures.values()]
    own = labels == [[number] for number in range(1, len(labels) + 1)]
    ct = [("ct" if one.upper() == "CT" else "percentiles") for one in modality]
    data: dict[str, object] = {"layout": layout, "modality": list(modality)}
    data |= {} if own else {"labels": labels}
    data |= {"dims": 2, "size": 64, "slices_per_patient": 8} | ({"normalisation": ct} if "ct" in ct else {})
    data |= {"window": [-150.0, 250.0]} if "ct" in ct else {}
    ids = [*sites, *(f"site-{number}" for number in range(len(sites) + 1, SITES + 1))]
    content: dict[str, Any] = {
        "study": {"name": name, "structures": list(structures), "rounds": 10, "local_steps": 20, "lr": 0.2},
        "data": data,
        "privacy": {"mechanism": "none", "sample_rate": 0.5, "denominator": 4},
        "secagg": {"clip_range": 2.0},
        "sites": [{"id": site} for site in ids],
    }
    return content


NOTES = {
    "classes": "as folders or a table call them; of a .npz file their names are free, in the order of its numbers",
    "structures": "their names are free; the order is that of the label values",
    "rounds": "to decide: with differential privacy every round costs; begin with few",
    "labels": "each structure's values in the files; one within another is a region",
    "modality": "names of the channels, in this order",
    "size": "more costs time and memory",
    "window": "Hounsfield units that become 0 and 1",
    "mechanism": "to decide: first see whether it can be learned at all; then 'local' or 'distributed'",
    "denominator": "about the patients that a usual site draws in a step: a public constant, not counted from data",
}
WHOSE = """# To decide, where nothing but file names says who is a patient (docs/study.md, Patients):
# patient = '(?P<patient>[^/]+)[.]{}'    # each file is a patient of its own
"""
ENDINGS = {"decathlon": "nii", "nnunet": "nii", "table": "nii", "images": "[a-z]+$"}
UNDECIDED = """# To decide, with mechanism = "local" or "distributed":
# epsilon = 8.0       # what a patient may lose over the whole study; smaller is safer
# delta = 1e-4        # below 1/patients, say a tenth of 1/(the patients of all sites)
# clip_norm = 0.05    # length to which one patient's gradient is cut
"""


def _toml(content: Mapping[str, object], found: int) -> str:
    lines = ["# Proposed by `fedseg new` from a folder of images. Read every line: it is yours to decide.", ""]
    for section, rows in content.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            lines.append(f"[[{section}]]" if isinstance(rows, list) else f"[{section}]")
            for key, value in row.items():
                note = f"  # {NOTES[key]}" if key in NOTES else ""
                if section == "sites" and number >= found:
                    note = "  # another hospital: a sum needs three"
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}{note}")
            if section == "data" and (ending := ENDINGS.get(row["layout"])):
                lines += WHOSE.format(ending).splitlines()
            lines += [*UNDECIDED.splitlines(), ""] if section == "privacy" else [""]
    return "\n".join(lines)
