"""A site's images: found, checked, normalised, split by patient. Nothing here is ever sent."""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        "fedseg needs torch, which is not installed; run: pip install 'secagg[fedseg]'", name="torch"
    )
