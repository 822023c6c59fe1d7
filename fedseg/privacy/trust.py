"""What a mechanism claims, whom one has to trust for it, and the sentences that say so.

"An epsilon is claimed" and "each update is private alone" are two promises. Where the noise is in the sum only, the
first holds and the second does not, and every guard around single updates has to stay. Screen, report and commands take
their sentences about trust from the row of a mechanism (`fedseg.mechanisms`) and from nowhere else.
"""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Trust:
    """One mechanism's row.

    Attributes:
        claims_epsilon: an epsilon is claimed. Gradients are clipped and noised, rounds are charged against a budget,
            and nothing that a site shows may depend on its patients.
        each_update_private: a single update is private, whoever sees it. Where it is not, two sums of the same updates
            that differ in one site would give that site away: sites replay whole transcripts (C-05, C-26).
        trusted: who has to be trusted, in a few words, to go before "is trusted".
        because: why nobody else has to be, or what those could do, in one clause.
        short: the same as a choice in the study file.
    """

    claims_epsilon: bool
    each_update_private: bool
    trusted: str
    because: str
    short: str

    def with_corrupt(self, sites: int) -> "Trust":
        """The same, with the number of sites that may side with the coordinator in place of ``{c}``."""
        return replace(self, trusted=self.trusted.format(c=sites), because=self.because.format(c=sites))

    @property
    def sentence(self) -> str:
        """Who is trusted and why, in one sentence."""
        return f"{self.trusted} is trusted: {self.because}"


NO_CLAIM_SEEDED: Final = "seeded: no privacy claim"
SEEDED = f"{NO_CLAIM_SEEDED}: whoever knows the seed can recompute the noise"
"""Of a study with a seed, whatever its mechanism; the first is the same where there is little room."""
