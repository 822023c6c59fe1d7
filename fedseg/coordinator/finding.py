"""Finds the run that a coordinator goes on with: the same study, the same credentials, wherever its process ended."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from fedseg.errors import ConfigError
from fedseg.events import Listener
from fedseg.runfolder import IDENTITY, RunFolder
from fedseg.study import Study
from secagg.files import Federation
from secagg.service.standing import JOURNAL
from secagg.writing import write_whole


def write_identity(run: Path, study: Study, federation: Federation) -> None:
    """Say in a run's folder which run it is of."""
    write_whole(run / IDENTITY, json.dumps(_identity(study, federation)))


def folder_of_run(runs: Path, study: Study, federation: Federation, *listeners: Listener) -> RunFolder:
    """The folder of this run under `runs`: of an earlier process, where there was one, or a new one.

    Raises:
        ConfigError: `runs` cannot be written, a run of this name there is another study's, or a process runs it now.
    """
    found = earlier_folder(runs, study, federation)
    if found is None:
        return RunFolder.create(runs, study, *listeners)
    return RunFolder.again(found, *listeners, over=run_is_over(found))


def earlier_folder(runs: Path, study: Study, federation: Federation) -> Path | None:
    """The folder that this run has under `runs`; None where it never began.

    Raises:
        ConfigError: a run of this name there is another study's.
    """
    ours = _identity(study, federation)
    for named in sorted(runs.glob(f"*/{IDENTITY}")):
        found = json.loads(named.read_text(encoding="utf-8"))
        if (found["run"], found["roster"]) != (ours["run"], ours["roster"]):
            continue
        if found["study"] != ours["study"]:
            raise ConfigError(
                f"{named.parent}: holds training run '{found['run']}' of another study; start with that study file, or "
                "give all parties new credentials with another --training-run"
            )
        return named.parent
    return None


def _identity(study: Study, federation: Federation) -> dict[str, str]:
    roster = federation.pinned.hash().hex()
    return {"run": federation.training_run, "study": study.hash().hex(), "roster": roster}


def run_is_over(folder: Path) -> bool:
    """Whether the run in a coordinator's folder came to its end, as its journal says.

    Raises:
        ConfigError: the journal cannot be read.
    """
    journal = folder / JOURNAL
    if not journal.is_file():
        return False
    try:
        with closing(sqlite3.connect(journal, timeout=0.5)) as database:
            return database.execute("SELECT 1 FROM state WHERE key = 'finished'").fetchone() is not None
    except sqlite3.Error as error:
        raise ConfigError(
            f"{journal}: cannot be read ({error}); where another coordinator runs this study, end that one first"
        ) from None
