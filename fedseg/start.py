"""What a study starts from: fresh weights, a public phantom, or a file."""

from pathlib import Path

import torch

from fedseg.data.cases import SiteData
from fedseg.models import build_model, load_model
from fedseg.study import Study


def starting_model(study: Study) -> torch.nn.Module:
    """The model before the first round."""
    if study.model.start == "scratch":
        return build_model(study)
    return load_model(Path(study.model.start), study)


def public_cases(study: Study) -> SiteData:
    """A few phantoms that the coordinator may look at, because they are nobody's."""
    return SiteData("public phantom", (), ())
