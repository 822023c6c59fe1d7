"""All phantoms, and which one fits a study."""

from typing import Any

from fedseg.data.phantoms.chest import CHEST
from fedseg.data.phantoms.fetal_scan import FETAL
from fedseg.data.phantoms.hippocampus import HIPPOCAMPUS
from fedseg.data.phantoms.phantom import Phantom
from fedseg.data.phantoms.temporal_lobe import TEMPORAL_LOBE
from fedseg.data.phantoms.tumour import TUMOUR
from fedseg.errors import ConfigError
from fedseg.study import Study

PHANTOMS: tuple[Phantom[Any], ...] = (FETAL, TUMOUR, TEMPORAL_LOBE, HIPPOCAMPUS, CHEST)


def find_phantom(study: Study) -> Phantom[Any] | None:
    """The phantom with the study's structures, channels and dims; None where there is none."""
    return next((phantom for phantom in PHANTOMS if phantom.fits(study)), None)


def phantom_of(study: Study, field: str, remedy: str) -> Phantom[Any]:
    """As `find_phantom`.

    Args:
        study: what the phantom has to fit.
        field: of the study, that asks for a phantom.
        remedy: what else to do.

    Raises:
        ConfigError: no phantom fits.
    """
    if (found := find_phantom(study)) is not None:
        return found
    raise ConfigError(
        f"{field}: there are phantoms for {', and for '.join(phantom.wish for phantom in PHANTOMS)}; this study has "
        f"{len(study.names)} in {list(study.data.modality)}, dims = {study.data.dims}; {remedy}"
    )
