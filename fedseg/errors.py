"""Errors of fedseg, for people: one sentence that says what is wrong, where, and what to do.

A message about one patient's data is a `CaseError`: it is shown locally and never sent anywhere.
"""

EARLIER = (
    "was written by fedseg 0.1 or 0.2, whose epsilon was not true: one patient more or less changed whether others "
    "train (CHANGELOG, Privacy); it cannot be gone on with, so move it away and keep it as the record of what its "
    "patients have spent beyond any claim"
)
"""Why a run, a ledger or a report's figures of an earlier version are refused; begins after the path."""


class FedSegError(Exception):
    """Root of everything that fedseg raises on purpose."""


class ConfigError(FedSegError, ValueError):
    """A study, folder or argument of ours is wrong or unsafe; nothing has been trained or sent."""


class CaseError(FedSegError):
    """One case's files are missing, damaged or inconsistent; local only, never sent.

    Attributes:
        case: what a person has to look at: usually the file.
    """

    def __init__(self, case: str, message: str) -> None:
        super().__init__(f"{case}: {message}")
        self.case = case


class SiteWarning(UserWarning):
    """Something that a person at this computer should know, and that nobody else is told: every command shows it."""


class PrivacyError(FedSegError):
    """The promised guarantee cannot be given."""


class BudgetExceededError(PrivacyError):
    """The next whole round would pass the privacy budget; it was not started."""


class UnsupportedModelError(PrivacyError):
    """A layer mixes patients, so that per-patient clipping would not bound one patient's influence."""


class LedgerError(PrivacyError):
    """The ledger is damaged, was edited, or does not belong to this study."""


class RoundFailedError(FedSegError):
    """A round ended without a new model; the last whole round's model stands."""


class UnfinishedError(RoundFailedError):
    """The run ended before its study was complete: no success of the command, and where it can the same one goes on."""
