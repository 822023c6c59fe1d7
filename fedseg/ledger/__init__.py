"""What a data set's patients have paid: one append-only, hash-chained, fsynced JSON line per charged round.

A site has one ledger for its data set for good, across training runs and studies, because what is spent composes over
all of them. `entries` is what a line can say and what it released, `chain` the file and how damage is found, `book` the
ledger that is appended to. Nothing here is ever rewritten, and no patient, image or secret key is ever named.
"""

from fedseg.ledger.book import FILE, Ledger
from fedseg.ledger.chain import START, Line, read, verify
from fedseg.ledger.entries import Entry, MetricsRelease, NoisySteps, NoisySum, UnprotectedRound, released

__all__ = [
    "FILE",
    "START",
    "Entry",
    "Ledger",
    "Line",
    "MetricsRelease",
    "NoisySteps",
    "NoisySum",
    "UnprotectedRound",
    "read",
    "released",
    "verify",
]
