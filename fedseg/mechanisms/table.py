"""Every mechanism by its name, and what is said of it; a new one is one more file and one more line here."""

from fedseg.errors import ConfigError
from fedseg.mechanisms.clipped import Clipped
from fedseg.mechanisms.distributed import Distributed
from fedseg.mechanisms.local import Local
from fedseg.mechanisms.mechanism import Mechanism
from fedseg.mechanisms.none import Unprotected
from fedseg.mechanisms.svt import SparseVectorTechnique
from fedseg.privacy.trust import Trust

MECHANISMS: dict[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (Local(), Distributed(), SparseVectorTechnique(), Unprotected(), Clipped())
}
"""By `[privacy] mechanism`."""


def trust_in(mechanism: str, max_corrupt: int) -> Trust:
    """What a mechanism claims where so many sites may side with the coordinator.

    Raises:
        ConfigError: this version does not know it, such as in the report of a later one; what it claims cannot be said.
    """
    if mechanism not in MECHANISMS:
        raise ConfigError(f"mechanism '{mechanism}' is not known to this version of fedseg; use a later one")
    return MECHANISMS[mechanism].trust.with_corrupt(max_corrupt)


def no_claim(mechanism: str) -> str:
    """Why a mechanism gives no bound, as one sentence."""
    return f"no differential privacy is claimed: mechanism = '{mechanism}', and {trust_in(mechanism, 0).because}"
