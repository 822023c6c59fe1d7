"""The coordinator: opens rounds, relays the protocol, averages, and never sees an update, only their sum.

It holds no secret of any site and no image. A site that goes silent costs the round some seconds, not its result:
the round closes without it, and it may join the next one. `run` is the process and its rounds, `hearing` what sites
tell it, `presence` who is there, `figures` what it may say about models, `transcripts` what it keeps for auditors.
"""

from fedseg.coordinator.options import Options
from fedseg.coordinator.run import Coordinator, coordinate

__all__ = ["Coordinator", "Options", "coordinate"]
