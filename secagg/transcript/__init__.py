"""The public transcript of a round: a server records it, and anybody verifies it without the server.

`record` is the form of a file and `recorder` writes it; `reading`, `checks` and `verify` judge it; `participation` is
about many. Knows neither session nor server. Specification: docs/spec.md, section "Transcripts".
"""

from secagg.transcript.participation import Isolation, Singled, isolated
from secagg.transcript.reading import ViolationError
from secagg.transcript.recorder import Recorder
from secagg.transcript.verify import Missing, RoundReport, Verdict, accept, verify

__all__ = [
    "Isolation",
    "Missing",
    "Recorder",
    "RoundReport",
    "Singled",
    "Verdict",
    "ViolationError",
    "accept",
    "isolated",
    "verify",
]
