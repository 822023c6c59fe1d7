"""Who paid: sets of patients by salted digests, which stay at the site and never leave it.

Each entry of a ledger names one set by its hash; the set is a file beside the ledger. The salt is made at the site once
and is its owner's only, so that nobody who sees a set can look whether a name is in it. Epsilon of a patient is that of
all entries whose set contains the patient; a set that cannot be read counts for everybody.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from fedseg.ledger.entries import Entry, distinct
from secagg.encoding import digest
from secagg.writing import PRIVATE_FOLDER, write_whole

FOLDER = "patients"
"""In the state folder."""


class PatientSets:
    """The sets of one data set.

    Args:
        folder: where they lie.
        salt: the site's, 32 bytes.
    """

    def __init__(self, folder: Path, salt: bytes) -> None:
        self._folder, self._salt = folder, salt
        self._read: dict[str, frozenset[str] | None] = {}

    @cached_property
    def _salted(self) -> str:
        """First line of a file: which salt its digests are of."""
        return f"salt {digest('patients-salt', self._salt).hex()[:16]}"

    def digest_of(self, patient: str) -> str:
        """A patient's digest, 32 hexadecimal digits; `patient` is an identifier of the data."""
        identifier = patient.encode("utf-8", "surrogateescape")  # a folder's name need not be text
        return hashlib.blake2b(identifier, digest_size=16, key=self._salt, person=b"fedseg patient").hexdigest()

    def keep(self, patients: Iterable[str]) -> str:
        """Make a set of patients durable and return its id, 64 hexadecimal digits.

        Raises:
            OSError: it cannot be written.
        """
        text = "\n".join([self._salted, *sorted({self.digest_of(patient) for patient in patients}), ""])
        name = _id(text)
        path = self._folder / f"{name}.txt"
        if not path.is_file():
            self._folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            write_whole(path, text)
        return name

    def members(self, name: str) -> frozenset[str] | None:
        """The digests of a set; None where it is not known who they are: everybody may be in it."""
        if name not in self._read:
            self._read[name] = self._members(name)
        return self._read[name]

    def _members(self, name: str) -> frozenset[str] | None:
        try:
            text = (self._folder / f"{name}.txt").read_text(encoding="ascii")
        except (OSError, UnicodeError):
            return None
        salted, *digests = text.splitlines()
        return frozenset(digests) if _id(text) == name and salted == self._salted else None

    @property
    def everybody(self) -> frozenset[str]:
        """All digests in any set that can be read."""
        every = (self.members(path.stem) for path in self._folder.glob("*.txt"))
        return frozenset().union(*(members for members in every if members is not None))

    def of(self, patient: str, entries: Sequence[Entry]) -> list[Entry]:
        """What a patient has paid of a ledger's entries; of those whose set is not known, all."""
        own = self.digest_of(patient)
        return distinct(e for e in entries if (members := self.members(e.patients)) is None or own in members)

    def heaviest(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """What patients have paid: each list that some patient paid, without those that another one contains."""
        known = {name: members for name in {e.patients for e in entries} if (members := self.members(name)) is not None}
        of_patient: dict[str, set[str]] = {}
        for name, members in known.items():
            for patient in members:
                of_patient.setdefault(patient, set()).add(name)
        kinds = {frozenset(names) for names in of_patient.values()} or {frozenset()}
        most = [kind for kind in kinds if not any(kind < other for other in kinds)]
        return [distinct(e for e in entries if e.patients not in known or e.patients in kind) for kind in most]


def _id(text: str) -> str:
    return digest("patients", text).hex()
