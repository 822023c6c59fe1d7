"""What is wrong with a transcript, and where. Specification: docs/spec.md, section "Transcripts"."""

from secagg.errors import SecAggError


class ViolationError(SecAggError):
    """A check on a transcript failed: the file does not show what it claims.

    Attributes:
        check: id of the row in the specification's table, such as ``T-12``.
        sentence: what is wrong.
        record: number of the record, the opening being 0; None where it is no single one.
        sender: whose message it is; empty for the server's, or nobody's in particular.
        file: what whoever read it calls the transcript, such as its path; empty until the verdict.
    """

    def __init__(self, check: str, sentence: str, record: int | None = None, sender: str = "") -> None:
        super().__init__(check, sentence, record, sender)
        self.check, self.sentence, self.record, self.sender = check, sentence, record, sender
        self.file = ""

    def __str__(self) -> str:
        where = "" if self.record is None else f"record {self.record}"
        where += f" of {self.sender}" if self.sender else ""
        told = [self.file, where.strip(), self.sentence]
        return f"[{self.check}] " + ": ".join(part for part in told if part)

    def as_dict(self) -> dict[str, object]:
        """For machines; keys are only ever added."""
        return {
            "check": self.check,
            "file": self.file,
            "record": self.record,
            "sender": self.sender,
            "sentence": self.sentence,
        }
