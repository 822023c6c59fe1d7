"""Models as flat vectors, and the two kinds of update: one that may leave a site and one that may not.

`LocalUpdate` cannot be serialised and shows no values; the aggregator's type accepts `NoisedUpdate` only. So
an unprotected update leaving a site is a type error first and a `TypeError` second.
"""

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedseg.errors import ConfigError
from secagg.encoding import digest


def flatten(model: torch.nn.Module) -> NDArray[np.float32]:
    """All parameters in definition order: a fresh (d,) float32 array."""
    with torch.no_grad():
        vector = parameters_to_vector(model.parameters()).to("cpu", torch.float32)
    return np.array(vector.numpy(), dtype=np.float32)


def assign(model: torch.nn.Module, vector: NDArray[np.float32]) -> None:
    """Set all parameters from a (d,) vector, in the order of `flatten`.

    Raises:
        ConfigError: the vector's length is not the model's.
    """
    parameters = list(model.parameters())
    expected = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (expected,):
        raise ConfigError(f"the model has {expected} parameters and the vector has shape {vector.shape}; same study?")
    values = torch.from_numpy(np.array(vector, dtype=np.float32)).to(parameters[0].device)
    with torch.no_grad():
        vector_to_parameters(values, parameters)


def model_hash(vector: NDArray[np.float32]) -> bytes:
    """Digest over dtype, length and little-endian bytes of a (d,) vector, 32 bytes."""
    return digest("model", "float32", len(vector), np.ascontiguousarray(vector, dtype="<f4").tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class LocalUpdate:
    """A difference of weights without noise, (d,) float32: stays in this process."""

    vector: NDArray[np.float32] = field(repr=False)
    site: str

    def __reduce__(self) -> NoReturn:
        raise TypeError("a local update has no noise and never leaves its process")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()


@dataclass(frozen=True, slots=True, eq=False)
class NoisedUpdate:
    """What may be aggregated: a difference of weights made of noised steps only.

    Attributes:
        vector: (d,) float32, in the order of `flatten`.
        site: whose.
        event_id: the ledger's event that was charged for it; empty only where `unprotected` says so.
    """

    vector: NDArray[np.float32] = field(repr=False)
    site: str
    event_id: str

    @classmethod
    def unprotected(cls, update: LocalUpdate) -> "NoisedUpdate":
        """Let an update without noise go: only for `mechanism = "none"`, where every output says so."""
        return cls(vector=update.vector, site=update.site, event_id="")
