"""A second implementation of the transcript verifier, written from docs/spec.md and the vectors alone.

It imports neither secagg nor fedseg, and has other libraries for most primitives (`primitives`). Where the text did not
suffice it was mended: PLACES.md lists the places. `audits.transcripts` holds both verifiers against each other.
"""

from audits.verifier.command import verify_run, verify_transcript

COMMANDS = {"verify-transcript": verify_transcript, "verify-run": verify_run}
