"""Who is a patient: as the site's table says, or the study's pattern, or the layout; never a guess.

Roles, draws, clipping, epsilon and the ledger go by patient, so that two scans of one person under two names would be
paid as one and protected as one each. Where nothing says who is who, names that could be one person's are refused.

With differential privacy a refusal would tell that somebody is there. So a line or a name of that kind leaves out whom
it is about, and nobody else: one patient more or less changes who is used by at most one patient.
"""

import csv
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from fedseg.data.cases import Case
from fedseg.data.layouts.layout import Entry
from fedseg.errors import CaseError, ConfigError, SiteWarning
from fedseg.files import read_text
from fedseg.study import Study

TABLES = ("patients.tsv", "patients.csv")
"""Looked for in a site's folder where the study names no other file."""
FILE_COLUMNS = ("file", "image", "case", "case_id")
PATIENT_COLUMNS = ("patient", "patient_id", "participant_id")
SHOWN = 3

_SESSION = re.compile(
    r"[-_. ]+(?:(?:ses|session|tp|timepoint|time|visit|scan|run|acq|frame|phase|echo|stack)[-_]?\d+"
    r"|(?:day|week|month|year|[tvdwm])[-_]?\d+"
    r"|pre|post|pre-?op|post-?op|baseline|bl|follow-?up|fu"
    r"|left|right|ed|es|(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d)[-_]?\d*$",
    re.IGNORECASE,
)
_ENDING = re.compile(r"[.](nii([.]gz)?|png|jpe?g|dcm)$", re.IGNORECASE)
_NUMBER = re.compile(r"[-_. ](?:\d+|[A-Za-z])$")


@dataclass(frozen=True)
class Whose:
    """An entry whose patient somebody named."""

    entry: Entry
    patient: str

    @property
    def case(self) -> str:
        """The entry's."""
        return self.entry.case

    @property
    def subject(self) -> str:
        """The patient."""
        return self.patient

    @property
    def name(self) -> str:
        """The entry's."""
        return self.entry.name

    @property
    def images(self) -> tuple[Path, ...]:
        """The entry's."""
        return self.entry.images

    def remarks(self) -> Sequence[str]:
        """The entry's."""
        return self.entry.remarks()

    def load(self, site: str, study: Study) -> Case:
        """As the entry, under its patient."""
        return replace(self.entry.load(site, study), patient=self.patient)


@dataclass(frozen=True)
class Unnamed(Whose):
    """An entry of which the table or the pattern says nothing: it cannot be used, whoever else is there."""

    why: str

    def load(self, site: str, study: Study) -> Case:
        """Raises `CaseError`."""
        raise CaseError(self.name, self.why)


class Alike(Unnamed):
    """An entry that could be of the same person as another one, and nothing says whether it is."""


def by_patient(listed: Sequence[Entry], folder: Path, study: Study) -> list[Entry]:
    """The entries of a site, each under its patient.

    With differential privacy names that share a stem are left out together: a name more takes out at most the one that
    was alone with its stem.

    Args:
        listed: what the layout found.
        folder: the site's own.
        study: gives `patient` and `patients`.

    Raises:
        ConfigError: the table is missing or malformed, or gives one file to two patients; without differential privacy
            also where nothing says who is a patient and names share a stem.
    """
    if (table := patient_table(folder, study)) is not None:
        return _by_table(listed, folder, table, study.trust.claims_epsilon)
    if study.data.patient:
        return [_by_pattern(entry, inside(entry.name, folder), study.data.patient) for entry in listed]
    if same := alike([entry.case for entry in listed if entry.subject is None]):
        if not study.trust.claims_epsilon:
            raise ConfigError(f"{folder}: {_which(same, listed[0].name)}")
        of = {name: _which({stem: names}, listed[0].name) for stem, names in same.items() for name in names}
        return [Alike(entry, entry.case, of[entry.case]) if entry.case in of else entry for entry in listed]
    return list(listed)


def patient_table(folder: Path, study: Study) -> Path | None:
    """The site's own table of who is who: the study's `patients`, or one of `TABLES` that is there."""
    if study.data.patients:
        return folder / study.data.patients
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def alike(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that could be one person's: those that repeat, and those that share a stem, by that stem.

    A stem is what is left without endings such as `_ses-02`, `_frame01`, `_baseline`, a date or `-001`. A number or one
    letter at the end is a time point only where a number is left before it: `hippocampus_001` and `hippocampus_004`
    are two patients, `P7_1` and `P7_2` could be one.
    """
    found = defaultdict(list)
    for name in names:
        found[stem_of(name).casefold()].append(name)
    return {stem_of(same[0]): same for same in found.values() if len(same) > 1}


def stem_of(name: str) -> str:
    """A case's name without what looks like a time point, a session or a run."""
    while True:
        rest = _SESSION.sub("", name)
        if rest == name and any(map(str.isdigit, shorter := _NUMBER.sub("", name))):
            rest = shorter
        if rest == name or not any(map(str.isalnum, rest)):
            return name
        name = rest


def inside(name: str, folder: Path) -> str:
    """A file's path from the site's folder on, with forward slashes; the name itself where it lies elsewhere."""
    path = Path(name)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def bare(path: str) -> str:
    """A file's name without folders and without the ending of an image."""
    return _ENDING.sub("", path.rpartition("/")[2])


def rows_of(table: Path, going_on: bool = False) -> dict[str, str]:
    """File or case to patient, as a table says; the columns are known by their header.

    Args:
        table: the file.
        going_on: leave out a line that lacks something, with a warning, instead of refusing the table.

    Raises:
        ConfigError: missing or malformed, or one file has two patients: no rule about that is about one of them alone.
    """
    text = read_text(table, "it says which file is whose: make it, or correct [data] patients", names=True)
    header = text.partition("\n")[0]
    rows = list(csv.reader(StringIO(text), delimiter=max("\t,;", key=header.count)))
    columns = [column.strip().casefold() for column in rows[0]] if rows else []
    file, patient = (
        next((columns.index(n) for n in known if n in columns), -1) for known in (FILE_COLUMNS, PATIENT_COLUMNS)
    )
    if min(file, patient) < 0:
        raise ConfigError(f"{table}: its first line must name the columns 'file' and 'patient'; correct it")
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(file, patient) or not row[file].strip() or not row[patient].strip():
            said = f"{table}: line {number} lacks its file or its patient; fill it in or remove it"
            if not going_on:
                raise ConfigError(said)
            warnings.warn(said, SiteWarning, stacklevel=2)
            continue
        name, whose = row[file].strip().replace("\\", "/").removeprefix("./"), row[patient].strip()
        if found.setdefault(name, whose) != whose:
            raise ConfigError(f"{table}: line {number} gives {name} to {whose} and another line to {found[name]}")
    return found


def _by_table(listed: Sequence[Entry], folder: Path, table: Path, going_on: bool) -> list[Entry]:
    rows = rows_of(table, going_on)
    keys = [next((name for name in _names(entry, folder) if name in rows), None) for entry in listed]
    files = defaultdict(set)
    for entry, key in zip(listed, keys, strict=True):
        if key is not None and key in _names(entry, folder)[:-1]:  # what the layout calls it may be of many files
            files[key].add(inside(entry.name, folder))
    several = {
        rows[key]: f"'{key}' is the name of {len(named)} files; give their paths from {folder}"
        for key, named in sorted(files.items())
        if len(named) > 1
    }
    if several and not going_on:
        raise ConfigError(f"{table}: {next(iter(several.values()))}")
    result: list[Entry] = []
    for entry, key in zip(listed, keys, strict=True):
        if key is None:
            result.append(Unnamed(entry, "", f"is not in {table.name}; add a line that says whose it is"))
        elif (said := several.get(rows[key])) is not None:
            result.append(Unnamed(entry, "", f"is of a patient whose files are not told apart in {table.name}: {said}"))
        else:
            result.append(Whose(entry, rows[key]))
    return result


def _names(entry: Entry, folder: Path) -> list[str]:
    """What a table may call an entry: its path, its file's name, that without its ending, what the layout calls it."""
    path = inside(entry.name, folder)
    return [path, path.rpartition("/")[2], bare(path), entry.patient]


def _by_pattern(entry: Entry, path: str, pattern: str) -> Entry:
    found = re.search(pattern, path)
    if found is None or not found["patient"]:
        return Unnamed(entry, "", "its path does not fit [data] patient; rename the file or correct the pattern")
    return Whose(entry, found["patient"])


def _which(same: Mapping[str, Sequence[str]], example: str) -> str:
    """One sentence on names that could be one person's, and what to do; the example is any of the files."""
    ending = ".nii" if ".nii" in example else Path(example).suffix
    dot = f"[.]{ending[1:]}" if ending else "$"
    stem, names = next(iter(same.items()))
    several = f"{len(names)} names" if len(same) == 1 else f"{sum(map(len, same.values()))} names in {len(same)} groups"
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    how = "repeat" if len(set(names)) == 1 else f"share the stem '{stem}'"
    return (
        f"{several} {how} ({shown}), and nothing says whether that is one patient or several; name the patient of "
        "each file in a table patients.tsv in this folder (columns file and patient), or in the study with [data] "
        f"patient, such as '(?P<patient>[^/]+)[-_][^-_/]+{dot}' without the last part of the name, or "
        f"'(?P<patient>[^/]+){dot}' where each file is a patient of its own"
    )
