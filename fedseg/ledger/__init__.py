"""What a data set's patients have paid: one append-only, hash-chained, fsynced JSON line per charged round.

A site has one ledger for its data set for good, across training runs and studies, because what is spent composes over
all of them. `entries` is what a line can say and what it released, `chain` the file and how damage is found, `book` the
ledger that is appended to, `witness` how a cut-off end and an old copy are found, `patients` who paid, `home` where the
data sets of a site are, `payers` what patients have paid in others of them. Nothing is ever rewritten, and no patient,
image or secret key is ever named.
"""

from fedseg.ledger.book import FILE, Ledger
from fedseg.ledger.chain import START, Line, read, verify
from fedseg.ledger.entries import (
    Entry,
    MetricsRelease,
    NoisyStatistics,
    NoisySteps,
    NoisySum,
    SparseRelease,
    UnprotectedRound,
    distinct,
    released,
)

__all__ = [
    "FILE",
    "START",
    "Entry",
    "Ledger",
    "Line",
    "MetricsRelease",
    "NoisyStatistics",
    "NoisySteps",
    "NoisySum",
    "SparseRelease",
    "UnprotectedRound",
    "distinct",
    "read",
    "released",
    "verify",
]
