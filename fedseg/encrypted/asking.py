"""The pictures' owner's end: something that takes the place of a network, and asks the other two."""

from typing import Any

import numpy as np
import torch

from fedseg.encrypted.parties import PartyError
from fedseg.encrypted.program import Program
from fedseg.encrypted.session import Session
from fedseg.errors import ConfigError
from fedseg.study import Study, parse_study
from fedseg.tasks.table import task_of

MOST_PIXELS = 1 << 18
"""Of one question: more pictures at once are faster, and take more memory at all three."""


class EncryptedNetwork(torch.nn.Module):
    """A network whose weights are elsewhere and which does not see what it is shown.

    Args:
        session: one that is ready.
        study: by which the pictures are prepared.
    """

    def __init__(self, session: Session, study: Study) -> None:
        super().__init__()
        self._session, self._outputs = session, task_of(study).outputs
        self.nothing = torch.nn.Parameter(torch.zeros(0), requires_grad=False)  # a network has a device

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(k, channels, height, width) to what the network says of them.

        Raises:
            PartyError: another party has gone, or the program's answer is not of as many outputs as its study says.
        """
        at_once = max(1, MOST_PIXELS // (pictures.shape[-1] * pictures.shape[-2]))
        found = [self._session.ask(np.asarray(part, np.float32)) for part in torch.split(pictures.cpu(), at_once)]
        answer = np.concatenate(found)
        if answer.shape[1] != self._outputs:
            raise PartyError(
                f"the model answers with {answer.shape[1]} outputs and its study has {self._outputs}; ask its owner"
            )
        return torch.from_numpy(answer)


def agreed_study(said: dict[str, Any]) -> Study:
    """The study by which pictures are prepared, as the model's owner sent it with its program.

    Raises:
        ConfigError: it is no study, or what it makes of an image is not what the program takes.
    """
    study = parse_study(said["study"], "the study of the model's owner")
    wanted, made = Program.read(said["program"]).picture, (study.in_channels, *study.data.view)
    if wanted != made:
        raise ConfigError(f"the model takes pictures of {wanted} and its study makes them {made}; ask its owner")
    return study
