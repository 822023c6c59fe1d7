"""The patients of a run, and what each of them has paid at this site, in whatever data set."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from fedseg.errors import LedgerError
from fedseg.ledger.chain import read
from fedseg.ledger.entries import Entry, distinct
from fedseg.ledger.home import Home
from fedseg.ledger.patients import FOLDER, PatientSets

Paid: TypeAlias = Callable[[str], list[Entry]]
"""What a patient has paid."""


class Payers:
    """Who can be drawn in a run, and who is tested.

    Args:
        home: of the site; gives the salt, and the other data sets.
        state: the data set's state folder.
        training: patients that can be drawn, by the identifiers of the data.
        tested: those that are held out.
        unsaid: those that are left out because another one may be the same person: they pay, and are not drawn.
        apart: state folders of other sites on this machine: who is called the same there is somebody else.

    Attributes:
        sets: of the data set.
        staying: who may be drawn in the round that was charged last; the others have spent too much elsewhere.
    """

    def __init__(
        self,
        home: Home,
        state: Path,
        training: Sequence[str],
        tested: Sequence[str],
        unsaid: Sequence[str] = (),
        apart: Collection[Path] = (),
    ) -> None:
        self._home, self._state = home, state.resolve()
        self._apart = {self._state, *(path.resolve() for path in apart)}
        self.training, self.tested, self.unsaid = tuple(training), tuple(tested), frozenset(unsaid)
        self._salt = home.salt()
        self.sets = PatientSets(state / FOLDER, self._salt)
        self.staying = frozenset(training)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process of this site charges meanwhile, in any data set."""
        with self._home.alone():
            yield

    @property
    def left_out(self) -> str:
        """What to tell the site's operator, and nobody else, of who may not be drawn any more; "" where all may."""
        if not (out := len(set(self.training) - self.staying)):
            return ""
        return (
            f"{out} of {len(set(self.training))} patients have spent so much in other data sets of this site that one "
            "more round would pass a budget: they are not drawn, which nobody else can see"
        )

    def keep(self, patients: Sequence[str] | frozenset[str]) -> str:
        """Make a set durable; its id.

        Raises:
            LedgerError: it cannot be written; nothing was charged.
        """
        try:
            return self.sets.keep(patients)
        except OSError as error:
            raise LedgerError(
                f"{self._state / FOLDER}: who pays cannot be written ({error.strerror}); nothing was trained"
            ) from error

    def elsewhere(self) -> Paid:
        """What a patient of this run has paid in the other data sets of this site.

        Raises:
            LedgerError: the ledger of one does not verify, or is not there although it was.
        """
        others = []
        for state, count in {other.state: other.count for other in self._home.data_sets()}.items():
            path = Path(state) / "ledger.jsonl"
            if Path(state) in self._apart:
                continue
            if count and not path.is_file():
                raise LedgerError(
                    f"{path}: the ledger of another data set of this site is not there, and patients may be in both; "
                    "bring it back, or give its new place to its own next run"
                )
            if entries := [line.entry for line in read(path)]:
                sets = PatientSets(Path(state) / FOLDER, self._salt)
                others.append((sets, sets.everybody, entries))
        own = self.sets.digest_of

        def paid(patient: str) -> list[Entry]:
            """Each use of each other data set once."""
            return [
                entry
                for sets, everybody, entries in others
                for entry in distinct(entry for entry in entries if _paid(own(patient), entry, sets, everybody))
            ]

        return paid


def _paid(patient: str, entry: Entry, sets: PatientSets, everybody: frozenset[str]) -> bool:
    """Whether a patient, by digest, may have paid an entry of another data set."""
    members = sets.members(entry.patients)
    if members is not None:
        return patient in members
    # Lines of 0.4 name nobody: they count for whoever is known of that data set. A set that cannot be read: for all.
    return bool(entry.patients) or patient in everybody
