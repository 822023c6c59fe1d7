"""Whether a run was what it claims: transcripts, ledgers, model, figures and report held against each other, offline.

`material` is what was given, `rounds`, `models`, `ledgers` and `figures` are the checks. The reader brings roster, run
name and server key; everything else is computed anew from the study, or compared. Must never: write into what it looks
at, or count as held what it could not see. Specification: docs/spec.md, section "Runs".
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from fedseg.errors import FedSegError
from fedseg.evidence import VIOLATED, Evidence, Finding
from fedseg.verifying.figures import r06_figures, r07_pages, r08_parties
from fedseg.verifying.ledgers import r05_marks, t15_noise_floor, t17_ledger
from fedseg.verifying.material import Material, gather
from fedseg.verifying.models import t16_next_model
from fedseg.verifying.records import r09_sent
from fedseg.verifying.rounds import r01_study, r02_policy, r03_transcripts, r04_log
from secagg.errors import SecAggError

__all__ = ["CHECKS", "WHAT", "examined", "verify_run"]

Check: TypeAlias = Callable[[Material], Iterator[Finding]]

WHAT = {
    "R-01": "one study in all files",
    "R-02": "the policy follows from the study",
    "R-03": "every transcript holds, signatures and sums included",
    "R-04": "log and transcripts tell the same rounds",
    "T-15": "every update was charged with the noise that the study planned",
    "T-16": "every model is the last one plus the published sum",
    "T-17": "ledgers are whole chains, and epsilon recomputed from them is the one that is stated",
    "R-05": "sites' marks name the events of their ledgers and the heads of the log",
    "R-06": "figures are those of study and log",
    "R-07": "the report says what the folder gives",
    "R-08": "parties hold the same run",
    "R-09": "what transcripts show of a site is what it wrote down before it sent it",
}
"""What each check says, for people."""

CHECKS: dict[str, Check] = {
    "R-01": r01_study,
    "R-02": r02_policy,
    "R-03": r03_transcripts,
    "R-04": r04_log,
    "T-15": t15_noise_floor,
    "T-16": t16_next_model,
    "T-17": t17_ledger,
    "R-05": r05_marks,
    "R-06": r06_figures,
    "R-07": r07_pages,
    "R-08": r08_parties,
    "R-09": r09_sent,
}
"""In the order in which they run."""


def verify_run(paths: Iterable[Path], roster: Path | None = None) -> Evidence:
    """Hold everything that there is of one run against each other.

    Args:
        paths: run folders of the coordinator, of sites or of a simulation, complete or broken off; state folders of
            sites, and ledgers. Several together are compared with each other.
        roster: the reader's own federation.toml, with the run's name and the server's key; without it no signature is
            looked at.

    Returns:
        What was found: it never raises for what the files say.

    Raises:
        ConfigError: a folder is none of these, or what it begins with cannot be read.
    """
    return examined(gather(paths, roster))


def examined(given: Material) -> Evidence:
    """What every check finds in this material, which has a run in it."""
    findings = [finding for check in CHECKS for finding in _looked(check, given)]
    return Evidence(WHAT, tuple(findings), given.inputs())


def _looked(check: str, given: Material) -> Iterator[Finding]:
    """The findings of one check; a file in which something else stands is a finding, too."""
    try:
        yield from CHECKS[check](given)
    except (FedSegError, SecAggError) as error:
        yield Finding(check, VIOLATED, "files", str(error))
