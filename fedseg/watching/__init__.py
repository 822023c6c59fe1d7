"""How a run is seen from outside: a page, metrics, a log for machines, and what is kept of who did what.

All of it listens to the events of a run, or folds them (`fedseg.status`), and none can cost the run anything. `log`
and `auditing` write lines, `metrics` and `page` show a status, `server` serves both, `words` has the sentences. Must
never: show a patient, or, where an epsilon is claimed, to a machine the moment at which a site's training ended.
"""

from fedseg.watching.auditing import Auditing
from fedseg.watching.log import Logged
from fedseg.watching.page import render
from fedseg.watching.server import Watch

__all__ = ["Auditing", "Logged", "Watch", "render"]
