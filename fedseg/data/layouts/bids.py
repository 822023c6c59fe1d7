"""BIDS: FeTA's folders, and any other with its names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedseg.data.layouts.files import NIFTI, FileEntry, find_nifti, json_table, listed, without_ending
from fedseg.data.layouts.layout import Declared
from fedseg.errors import CaseError, ConfigError
from fedseg.files import read_text
from fedseg.study import Study

LABEL = "dseg"
NO_IMAGES = {LABEL, "mask", "probseg"}
SCANS = ("anat", "ses-*/anat")
_SPACE = re.compile(r"(?:^|_)space-(?P<space>[^_.]+)")


class Bids:
    """`sub-*/[ses-*/]anat/*_<modality>.nii.gz` beside `*_dseg.nii.gz`; a folder `sub-*` is a person.

    Several modalities are files of one name with each one's ending, or the fourth axis of the first one's file. Label
    maps may be in `derivatives/*/` instead, under the same path. `participants.tsv`, if there, is the list of people;
    folders that it does not name are left alone.
    """

    needs_folder = True
    index = "participants.tsv"

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[FileEntry]:
        """An entry for every image of every person; for a person without images, one that cannot be loaded."""
        modalities = study.data.modality
        for person in self._people(folder):
            stems = [
                path.with_name(without_ending(path).removesuffix(f"_{modalities[0]}"))
                for place in SCANS
                for path in listed(folder / person, f"{place}/*_{modalities[0]}.nii*")
                if path.name.endswith(NIFTI)
            ]
            for stem in dict.fromkeys(stems) or [folder / person / "anat" / person]:
                case = str(stem.relative_to(folder).with_name(f"{stem.name}_{modalities[0]}"))
                try:
                    images = [find_nifti(stem.with_name(f"{stem.name}_{modality}")) for modality in modalities]
                    together = len(images) > 1 and not any(image.exists() for image in images[1:])
                    label = _label(folder, stem)
                    yield FileEntry(case, tuple(images[:1] if together else images), label, subject=person)
                except CaseError as error:
                    nowhere = stem.with_name(f"{stem.name}_{modalities[0]}{NIFTI[0]}")
                    yield FileEntry(case, (nowhere,), nowhere, subject=person, wrong=error)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Endings that every person's images have."""
        endings = [
            {
                without_ending(path).rpartition("_")[2]
                for place in SCANS
                for path in listed(folder / person, f"{place}/*_*.nii*")
            }
            - NO_IMAGES
            for person in _folders(folder)
        ]
        return tuple(sorted(set.intersection(*endings))) if endings else ()

    def declared(self, folder: Path, study: Study) -> Declared:
        """The space, where a sidecar beside the people's folders says it for all of them; the rest is in each file."""
        return Declared(space=_space(folder, study.data.modality[0]))

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Folders that the list does not name, and rows that are there twice."""
        if not (folder / self.index).exists():
            return ()
        rows, people = self._rows(folder), set(self._people(folder))
        said = []
        if unlisted := sorted(set(_folders(folder)) - people):
            said.append(f"{self.index} does not list {', '.join(unlisted)}: left alone")
        if twice := sorted({row for row in rows if rows.count(row) > 1}):
            said.append(f"{self.index} lists {', '.join(twice)} more than once: taken once")
        return said

    def _people(self, folder: Path) -> list[str]:
        """Names of folders, each once."""
        if not (folder / self.index).exists():
            return _folders(folder)
        rows = dict.fromkeys(self._rows(folder))
        return [row if row.startswith("sub-") or (folder / row).is_dir() else f"sub-{row}" for row in rows]

    def _rows(self, folder: Path) -> list[str]:
        index = folder / self.index
        lines = read_text(index, "correct it", names=True).split("\n")
        rows = [line.split("\t") for line in lines if line.strip()]
        if not rows or rows[0][0] != "participant_id":
            raise ConfigError(f"{index}: its first column must be participant_id; correct the header line")
        return [row[0].strip() for row in rows[1:]]


def _folders(folder: Path) -> list[str]:
    return [path.name for path in listed(folder, "sub-*") if path.is_dir()]


def _space(folder: Path, modality: str) -> str | None:
    """`SpatialReference` in a sidecar of the whole data set, or `space-` in its name; a person's own are left alone.

    Raises:
        ConfigError: it is no table in JSON.
    """
    found: set[str] = set()
    for path in [*listed(folder, f"{modality}.json"), *listed(folder, f"*_{modality}.json")]:
        if path.name.startswith("sub-"):
            continue
        said = json_table(path, "correct it").get("SpatialReference")
        named = _SPACE.search(path.name)
        found |= {said} if isinstance(said, str) and said else {named["space"]} if named else set()
    return found.pop() if len(found) == 1 else None


def _label(folder: Path, stem: Path) -> Path:
    """Beside the image, or under the same path in a derivative; where it should be, if it is nowhere.

    Raises:
        CaseError: there are several, and nobody knows which one counts.
    """
    name = f"{stem.name}_{LABEL}"
    beside = find_nifti(stem.with_name(name))
    inside = stem.relative_to(folder).parent
    derived = [path for path in listed(folder, f"derivatives/*/{inside}/{name}.nii*") if path.name.endswith(NIFTI)]
    there = [path for path in (beside, *derived) if path.exists()]
    if len(there) > 1:
        raise CaseError(str(there[0]), f"{there[1]} is there too; remove the one that does not count")
    return there[0] if there else beside
