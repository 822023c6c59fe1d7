"""Delta, the probability that the promise fails altogether: which values say something, and how it is written."""

SMALLEST_DELTA = 1e-12
"""Below it the accountants resolve nothing, and nobody has that many patients."""


def delta_text(delta: float | None) -> str:
    """Delta as the study has it, never rounded: 0.00125 is not 0.0013."""
    return "n/a" if delta is None else repr(delta)


def too_large(delta: float | None, patients: int) -> str:
    """Why `delta` protects nobody among so many patients, as one sentence; empty where it does.

    Whoever publishes one patient drawn at random keeps to a delta of one over their number.
    """
    if delta is None or delta * patients < 1:
        return ""
    return (
        f"delta = {delta_text(delta)} is not below 1/{patients}: among {patients} patients it would allow publishing "
        f"one of them whole; choose a tenth of one over the patients, {0.1 / patients:.1g}"
    )
