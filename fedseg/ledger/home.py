"""A site's home: what belongs to the machine's user and not to a run, study or folder of credentials.

It is `~/.fedseg`, or what FEDSEG_HOME says. It holds the salt of patients' digests, and of each data set where its
state lies and how far its ledger has come: so a data set's ledger is found whatever run, study, working directory or
credentials it is used with, and patients that two data sets share are found too. Nothing of it ever leaves the site.
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedseg.errors import ConfigError
from fedseg.ledger.witness import Head
from secagg.encoding import digest
from secagg.writing import PRIVATE, PRIVATE_FOLDER, write_whole

VARIABLE = "FEDSEG_HOME"
SALT_BYTES = 32


@dataclass(frozen=True)
class DataSet:
    """One data set of a site: its images, its state folder (absolute paths), and how far its ledger has come."""

    site: str
    data: str
    state: str
    count: int = 0
    event_id: str = ""


class Home:
    """A site's home.

    Args:
        path: the folder; None for the user's own. It is made when something is written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or Path(os.environ.get(VARIABLE) or Path.home() / ".fedseg")).absolute()
        self._records = self.path / "data-sets"

    def salt(self) -> bytes:
        """The salt of this site's patients, 32 bytes, made once.

        Raises:
            ConfigError: it cannot be read or made.
        """
        path = self.path / "salt"
        with self.alone(), self._writing():
            if not path.is_file():
                write_whole(path, secrets.token_bytes(SALT_BYTES).hex() + "\n", PRIVATE)
            text = path.read_text(encoding="ascii").strip()
        if not re.fullmatch(rf"[0-9a-f]{{{2 * SALT_BYTES}}}", text):
            raise ConfigError(f"{path}: is not the salt of this site's patients; bring it back from a backup")
        return bytes.fromhex(text)

    def data_sets(self) -> list[DataSet]:
        """Every data set of this site."""
        return [self._read(path) for path in sorted(self._records.glob("*.json"))]

    def of_state(self, state: Path) -> list[DataSet]:
        """The data sets whose state is in this folder; usually one or none."""
        return [found for found in self.data_sets() if found.state == str(state.resolve())]

    def state_of(self, site: str, data: Path, given: Path | None, earlier: Path) -> Path:
        """The state folder of a data set, fixed on first use.

        Args:
            site: the site's id.
            data: the folder of its images.
            given: what the operator says; None for what is known.
            earlier: where versions before 0.5 kept it by default; it is taken over where it is there.

        Raises:
            ConfigError: it is not where it was, the operator names another one, or the images are another site's.
        """
        images = str(data.resolve())
        path = self._records / f"{digest('data-set', site, os.fsencode(images)).hex()[:16]}.json"
        if not path.is_file():
            if others := sorted({found.site for found in self.data_sets() if found.data == images}):
                raise ConfigError(
                    f"{images}: these images have taken part as site '{others[0]}', and under another name the same "
                    f"patients would begin at zero; call the site {others[0]} in this study too"
                )
            fallback = earlier if earlier.is_dir() else self.path / f"{site}-{path.stem}"
            state = (given or fallback).resolve()
            self._write(path, DataSet(site, images, str(state)))
            return state
        known = self._read(path)
        state = Path(known.state)
        if given is not None and given.resolve() != state:
            if state.exists():
                raise ConfigError(
                    f"{given}: the state of the data set {images} has been in {state} since its first use, with all "
                    "that its patients have spent; leave --state away. To move it, move that folder, then give --state"
                )
            if not given.is_dir():
                raise ConfigError(f"{given}: there is no such folder; give --state the folder that was {state}")
            state = given.resolve()
            self._write(path, replace(known, state=str(state)))
        if known.count and not state.is_dir():
            raise ConfigError(
                f"{state}: the state of the data set {images} is not there, and nothing else says what its patients "
                "have spent; if it was moved, give its new place with --state"
            )
        return state

    def remember(self, data_set: DataSet, head: Head) -> None:
        """Keep how far the ledger of a data set has come.

        Raises:
            ConfigError: it cannot be written.
        """
        name = digest("data-set", data_set.site, os.fsencode(data_set.data)).hex()[:16]
        self._write(self._records / f"{name}.json", replace(data_set, count=head.count, event_id=head.event_id))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process of this site looks at what is spent, or charges, meanwhile."""
        with self._writing():
            self.path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> DataSet:
        try:
            return DataSet(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ConfigError(f"{path}: is not the record of a data set; bring it back from a backup") from None

    def _write(self, path: Path, data_set: DataSet) -> None:
        with self._writing():
            for folder in (self.path, path.parent):
                folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(data_set), indent=1))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(
                f"{self.path}: this site's own folder cannot be used ({why}); give another one in {VARIABLE}, for good"
            ) from None


class RecordWitness:
    """The record in the home: it lies outside the state folder, so that a state folder put back as a whole is found."""

    def __init__(self, home: Home, state: Path) -> None:
        self._home, self._state = home, state

    @property
    def name(self) -> str:
        """See `fedseg.ledger.witness.Witness.name`."""
        return f"this site's own records in {self._home.path}"

    def head(self) -> Head | None:
        """See `fedseg.ledger.witness.Witness.head`."""
        heads = [Head(found.count, found.event_id) for found in self._home.of_state(self._state)]
        return max(heads, key=lambda head: head.count, default=None)

    def remember(self, head: Head) -> None:
        """See `fedseg.ledger.witness.Witness.remember`."""
        for found in self._home.of_state(self._state):
            self._home.remember(found, head)
