"""The coordinator: opens rounds, relays the protocol, averages, and never sees an update, only their sum.

It holds no secret of any site and no image. A site that goes silent costs the round some seconds, not its result:
the round closes without it, and it may join the next one. It may be killed at any point: the same command goes on.
`run` is the process, on the engine of `secagg.service`, `training` what a sum means, `finding` which run a command goes
on with, `figures` what it may say about models.
"""

from fedseg.coordinator.finding import folder_of_run
from fedseg.coordinator.options import Options
from fedseg.coordinator.run import Coordinator, coordinate

__all__ = ["Coordinator", "Options", "coordinate", "folder_of_run"]
