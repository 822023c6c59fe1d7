"""Evidence: what was held against what, and whether it holds, in one form for every command that looks at a run.

A finding that could not be made is evidence, too: it says what was not there. Must never: count what was not looked at
as held.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["held", "violated", "not checked", "does not apply"]
HELD: State = "held"
VIOLATED: State = "violated"
NOT_CHECKED: State = "not checked"
NOT_APPLICABLE: State = "does not apply"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: id of the check, such as T-16.
        state: what came out.
        subject: whose, or what was looked at, such as a folder.
        sentence: what was held against what; or what is wrong; or what is missing, so that nothing could be seen.
        items: how many things were compared.
    """

    check: str
    state: State
    subject: str
    sentence: str
    items: int = 0

    def __str__(self) -> str:
        return f"[{self.check}] {self.subject}: {self.sentence}"


@dataclass(frozen=True)
class Evidence:
    """All findings of one look.

    Attributes:
        claims: check id to what it says, for every check that belongs to the look.
        findings: in the order of the checks.
        inputs: SHA-256 of each file that was looked at, by its path.
    """

    claims: Mapping[str, str]
    findings: tuple[Finding, ...]
    inputs: Mapping[str, str]

    def of(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(finding for finding in self.findings if finding.check == check)

    def state(self, check: str) -> State:
        """Of a check over all that it looked at: held only where nothing was left out."""
        states = {finding.state for finding in self.of(check)}
        for state in (VIOLATED, NOT_CHECKED, HELD, NOT_APPLICABLE):
            if state in states:
                return state
        return NOT_CHECKED

    @property
    def violations(self) -> tuple[Finding, ...]:
        """What is wrong."""
        return tuple(finding for finding in self.findings if finding.state == VIOLATED)

    @property
    def not_seen(self) -> Iterator[str]:
        """A sentence for everything that could not be looked at."""
        for check, what in self.claims.items():
            if not self.of(check):
                yield f"[{check}] nothing was looked at of: {what}"
        yield from (str(finding) for finding in self.findings if finding.state == NOT_CHECKED)

    @property
    def status(self) -> str:
        """'holds', 'violated', or 'no power' where something could not be looked at."""
        states = {self.state(check) for check in self.claims}
        return "violated" if VIOLATED in states else "no power" if NOT_CHECKED in states else "holds"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated, 2 no power."""
        return {"holds": 0, "violated": 1}.get(self.status, 2)

    def as_dict(self) -> dict[str, object]:
        """Everything, for machines; keys are only ever added."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "checks": [{"id": check, "what": what, "state": self.state(check)} for check, what in self.claims.items()],
            "findings": [asdict(finding) for finding in self.findings],
            "inputs": dict(self.inputs),
        }
