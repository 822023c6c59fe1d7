"""A site: trains where its images are, and lets nothing out but noised, masked updates.

What the coordinator may know beside them is in `fedseg.dialogue`: that training began, epsilon spent (which does not
depend on the images), and validation Dice where the study says so; docs/threat-model-fedseg.md has what one patient
changes in it. Training, the protocol's first steps and the network run at once; a site that is killed comes back as a
dropout and joins the next round. `run` is the process and its rounds, `party` what it is between them, `exposed` what
keeps it out of rounds, `following` which model may come next, `figures` what it measures and writes down.
"""

from fedseg.site.options import Options
from fedseg.site.run import Site, take_part

__all__ = ["Options", "Site", "take_part"]
