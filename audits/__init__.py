"""Evidence for somebody who does not believe us: every claim has an audit, and every audit a command.

Run from the repository (`python -m audits`); not part of the wheel. `audits/README.md` is the auditor's path.
"""
