"""Every method by its name; a new one is one more file and one more line here."""

from fedseg.sharing.exclude import Exclude
from fedseg.sharing.full import Full
from fedseg.sharing.low_rank import LowRank
from fedseg.sharing.method import Method
from fedseg.sharing.percentile import Percentile
from fedseg.sharing.random_mask import RandomMask
from fedseg.sharing.sketch import Sketch

METHODS: dict[str, Method] = {
    method.name: method for method in (Full(), RandomMask(), LowRank(), Sketch(), Percentile(), Exclude())
}
"""By `[sharing] method`."""
