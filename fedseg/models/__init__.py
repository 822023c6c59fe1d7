"""Networks with GroupNorm, one file a family, and models as safetensors files."""

from fedseg.models.building import build_model, check_model
from fedseg.models.files import load_model, metadata_of, save_model, study_of

__all__ = ["build_model", "check_model", "load_model", "metadata_of", "save_model", "study_of"]
