"""What a data protection officer asks for: the ledger's schema, an assessment with blanks, words never used."""

from audits.base import Audit
from audits.regulatory import words

AUDITS = (
    Audit(
        "regulatory.words",
        "nothing calls data or the software what only a lawyer may, and the ledger's schema is the code's",
        (),
        {"quick": 3, "full": 3},
        words.run,
    ),
)
