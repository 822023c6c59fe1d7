from typing import Any

from numpy.typing import NDArray

from secagg.encoding import Buffer

def add_packed(total: NDArray[Any], packed: Buffer | NDArray[Any], bits: int, /) -> None: ...
def pack_into(vector: NDArray[Any], packed: NDArray[Any], bits: int, /) -> None: ...
def quantise(
    update: NDArray[Any],
    words: NDArray[Any],
    out: NDArray[Any],
    clip: float,
    scale: float,
    float_width: int,
    word_width: int,
    /,
) -> None: ...
