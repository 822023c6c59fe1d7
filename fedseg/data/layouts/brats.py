"""BraTS 2017 to 2024: a folder a case, one file for each modality, named by its ending."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedseg.data.layouts.channels import plain
from fedseg.data.layouts.files import NIFTI, FileEntry, listed, without_ending
from fedseg.data.layouts.layout import Declared
from fedseg.study import Study

LABEL = "seg"
GRADES = ("HGG", "LGG")  # folders between, in 2018 and 2019
PLACES = ("*/*", "*/*/*")
_PERSON = re.compile(
    r"(?P<person>BraTS-[A-Z]+-\d{5})-\d{3}|(?P<older>B[Rr]a[Tt][Ss]1[789]_.+)_\d|(?P<one>BraTS20_[A-Za-z]+_\d{3}|BraTS2021_\d{5})"
)
"""The last number is a time point of one person since 2023 and up to 2019; in 2020 and 2021 each case is a person."""


class Brats:
    """`CASE/CASE-t2f.nii.gz` or `CASE/CASE_flair.nii.gz`, ..., beside `-seg` or `_seg`.

    A modality may be written as any year does: `flair` is `t2f`, `t1ce` is `t1c`, `t1` is `t1n`, `t2` is `t2w`. A
    subset is allowed. Which label values are which structure differs by year: the study says it in `[data] labels`.
    """

    needs_folder = True
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[FileEntry]:
        """An entry for every folder that holds files of its own name."""
        files = [path for place in PLACES for path in listed(folder, f"{place}.nii*") if path.name.endswith(NIFTI)]
        for home in sorted({path.parent for path in files if path.name.startswith(path.parent.name)}):
            there = {plain(without_ending(path).removeprefix(home.name)): path for path in files if path.parent == home}
            mark = "_" if any(path.name.startswith(f"{home.name}_") for path in there.values()) else "-"

            def file(kind: str, home: Path = home, there: dict[str, Path] = there, mark: str = mark) -> Path:
                """The file of this kind, or where it should be."""
                return there.get(plain(kind), home / f"{home.name}{mark}{kind}.nii.gz")

            named = _PERSON.fullmatch(home.name)
            yield FileEntry(
                home.name,
                tuple(map(file, study.data.modality)),
                file(LABEL),
                subject=next(filter(None, named.groups())) if named else None,
            )

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Endings that every case's images have."""
        endings: dict[Path, set[str]] = {}
        for place in (PLACES[0], *(f"{grade}/{PLACES[0]}" for grade in GRADES)):
            for path in listed(folder, f"{place}.nii*"):
                stem, home = without_ending(path), path.parent
                if stem.startswith(home.name) and stem != home.name:
                    endings.setdefault(home, set()).add(stem.removeprefix(home.name)[1:])
        common = set.intersection(*endings.values()) - {LABEL} if endings else set()
        return tuple(sorted(name for name in common if name.isalnum()))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing: BraTS says on its pages what a label value is."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Nothing."""
        return ()
