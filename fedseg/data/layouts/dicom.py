"""DICOM as a hospital's archive gives it: a folder a case, with one series for each modality."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.data.cases import Case
from fedseg.data.layouts.channels import plain
from fedseg.data.layouts.files import find_nifti, joined, labelled, listed
from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.series import numbered, read_segments, read_series, series_in
from fedseg.data.layouts.volume import Volume
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError
from fedseg.study import Study

LABEL = "label"


@dataclass(frozen=True)
class DicomEntry:
    """A case whose series lie in a folder.

    Attributes:
        case: what it is called within its site: the folder's name.
        folder: holds the series, in any subfolders, and the label map.
        subject: PatientID of the images.
        patient: the unit of privacy; the subject, or else the case, until somebody decides otherwise.
        wrong: why it cannot be used, found while it was listed: this case only is left out for it, not the site.
    """

    case: str
    folder: Path
    subject: str | None
    patient: str = field(default="", kw_only=True)
    wrong: CaseError | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Fill in the patient."""
        if not self.patient:
            object.__setattr__(self, "patient", self.subject or self.case)

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.folder)

    @property
    def images(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.folder,)

    def remarks(self) -> Sequence[str]:
        """Series whose slices are not numbered from 1: those before may be lost, and their places do not tell."""
        said = []
        for header, files in series_in(self.folder).values():
            if (numbers := numbered(files)) and numbers[0] > 1:
                said.append(
                    f"the slices of series '{header.get('SeriesDescription', '')}' are numbered {numbers[0]} to "
                    f"{numbers[1]}: are those before lost?"
                )
        return said

    @property
    def label(self) -> Path:
        """Its label map."""
        seg = self.folder / f"{LABEL}.dcm"
        return seg if seg.exists() else find_nifti(self.folder / LABEL)

    def scan(self, site: str, study: Study) -> Scan:
        """Read the series and the label map; raises as `load`."""
        if self.wrong:
            raise self.wrong
        image, path = read_folder(self.folder, study), self.label
        seg = path.name.endswith(".dcm")
        label = read_segments(path, image, study.structures) if seg else labelled(path, image, site, study)
        return Scan(self.patient, self.name, image.values, image.affine, label, str(path), image.oriented)

    def load(self, site: str, study: Study) -> Case:
        """Read the series and the label map and bring them onto the study's working grid.

        Raises:
            CaseError: a series or the label map is missing, damaged or inconsistent.
        """
        return working_case(self.scan(site, study), site, study)


class Dicom:
    """A folder a case, with its series in any subfolders, and `label.dcm` (DICOM SEG) or `label.nii.gz`.

    Of several series that of a modality has its name as SeriesDescription, or as the name of its folder.
    """

    needs_folder = True
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[DicomEntry]:
        """An entry for every folder with images in it."""
        for home in (path for path in listed(folder, "*") if path.is_dir()):
            if found := series_in(home):
                people = {str(header.get("PatientID") or "") for header, _ in found.values()}
                mixed = f"has images of {len(people)} patients; give each a folder of its own"
                wrong = CaseError(str(home), mixed) if len(people) > 1 else None
                yield DicomEntry(home.name, home, None if wrong else people.pop() or None, wrong=wrong)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Descriptions that every case's series have; of one series a case, its kind, such as CT."""
        homes = [found for path in listed(folder, "*") if path.is_dir() and (found := series_in(path))]
        people = [{str(header.get("PatientID") or "") for header, _ in found.values()} for found in homes]
        if not homes or max(map(len, people)) > 1:  # several people in one folder: a site's, not a case's
            return ()
        if max(map(len, homes)) == 1:
            return (str(next(iter(homes[0].values()))[0].get("Modality") or "image"),)
        described = [{str(header.get("SeriesDescription") or "") for header, _ in found.values()} for found in homes]
        return tuple(sorted(set.intersection(*described) - {""}))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing: DICOM says it image by image."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Folders without images."""
        without = [path.name for path in listed(folder, "*") if path.is_dir() and not series_in(path)]
        return [f"{', '.join(without)}: no DICOM images in it, left alone"] if without else ()


def read_folder(folder: Path, study: Study) -> Volume:
    """The image of a folder with one series for each of the study's modalities.

    Raises:
        CaseError: as `chosen_series` and `read_series`; or the series lie on several grids.
    """
    return joined([read_series(files, str(folder)) for files in chosen_series(folder, study)], study)


def chosen_series(folder: Path, study: Study) -> list[tuple[Path, ...]]:
    """The files of each modality's series.

    Raises:
        CaseError: there is none, or several of which none has the modality's name; names all that are there.
    """
    found = list(series_in(folder).values())
    modalities = study.data.modality
    if len(found) == len(modalities) == 1:
        return [found[0][1]]
    chosen = []
    for modality in modalities:
        named = [files for header, files in found if plain(modality) in _names(header, files)]
        if len(named) != 1:
            there = "; ".join(f"'{header.get('SeriesDescription', '')}' with {len(files)}" for header, files in found)
            raise CaseError(
                str(folder),
                f"has {len(named) or 'no'} series for '{modality}' among {len(found)} ({there or 'none'}); leave one, "
                "or write its SeriesDescription in [data] modality",
            )
        chosen.append(named[0])
    return chosen


def _names(header: Any, files: Sequence[Path]) -> set[str]:
    return {plain(str(header.get("SeriesDescription", ""))), plain(files[0].parent.name)}
