"""R-09: a site's own record of what it sent, held against public transcripts."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fedseg.errors import LedgerError
from fedseg.evidence import HELD, NOT_APPLICABLE, NOT_CHECKED, VIOLATED, Finding
from fedseg.site.record import FILE, read
from fedseg.verifying.material import Material
from secagg.transcript_files import signatures


def r09_sent(given: Material) -> Iterator[Finding]:
    """R-09: the chain of the record holds, and every signature of the site in a transcript is of a message in it.

    One that is not there was made elsewhere with its key, or the state folder is an old copy.
    """
    shown: dict[str, dict[str, str]] = defaultdict(dict)  # by site, signature to the transcript that shows it
    for run in given.runs:
        for path in run.transcripts:
            if given.is_of_run(path):
                for site, signature in signatures(path):
                    shown[site].setdefault(signature.hex(), path.name)
    for ledger in given.ledgers:
        path = ledger.path.parent / FILE
        if ledger.simulated or ledger.path.resolve() in given.charged_by_simulations:
            yield Finding("R-09", NOT_APPLICABLE, str(ledger), "a simulation sends nothing to anybody")
        elif not path.is_file():
            yield Finding("R-09", NOT_CHECKED, str(ledger), f"no {FILE} lies beside it")
        elif not shown.get(ledger.site):
            yield Finding("R-09", NOT_CHECKED, str(ledger), "no transcript here shows a message of this site")
        else:
            yield _held(str(ledger), path, given.run_name, shown[ledger.site])


def _held(subject: str, path: Path, run: str, shown: dict[str, str]) -> Finding:
    try:
        own = {entry["signature"] for entry in read(path) if entry["run"] == run}
    except LedgerError as error:
        return Finding("R-09", VIOLATED, subject, str(error))
    if unknown := sorted({where for signature, where in shown.items() if signature not in own}):
        said = f"{', '.join(unknown)} shows messages that this site signed and has not written down: its key was used "
        return Finding("R-09", VIOLATED, subject, f"{said}elsewhere, or its state folder is an old copy", len(shown))
    told = f"all {len(shown)} messages of it in transcripts are in its record"
    return Finding("R-09", HELD, subject, told, len(shown))
