"""Differentially private federated training of medical image segmentation, through secure aggregation.

Import the room that you need: `fedseg.study`, `fedseg.data`, `fedseg.simulate`, `fedseg.predict`. Nothing is loaded
here, because torch and MONAI take seconds.
"""

import getpass
import os

# MONAI and torch ask for the user's name where they are loaded; a container's user need not have one.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["LOGNAME"] = str(os.getuid())
