"""How a coordinator is run."""

from dataclasses import dataclass
from pathlib import Path

from secagg.service.running import How


@dataclass(frozen=True, kw_only=True)
class Options(How):
    """How a coordinator runs; none of it changes what the study means.

    Attributes:
        credentials: folder of `fedseg.credentials`.
    """

    credentials: Path
