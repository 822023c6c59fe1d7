"""The public transcript of a round: what is in it, and whether it holds, without the server and without any file.

`record` is its form. `reading` files its `messages` and looks at its `vectors`; `facts` are what follows from them,
`checks` what must hold, and `judging` gives the `verdict` on many; `participation` finds whom combinations of rounds
single out. `secagg.transcript_files` records, publishes and reads files. Must never: know a session or a server, or
touch a file. Specification: docs/spec.md, section "Transcripts".
"""

from secagg.transcript.judging import accept, judge
from secagg.transcript.participation import Isolation, Singled, isolated
from secagg.transcript.verdict import Missing, RoundReport, Verdict
from secagg.transcript.violation import ViolationError

__all__ = [
    "Isolation",
    "Missing",
    "RoundReport",
    "Singled",
    "Verdict",
    "ViolationError",
    "accept",
    "isolated",
    "judge",
]
