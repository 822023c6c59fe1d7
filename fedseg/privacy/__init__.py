"""Patient-level differential privacy: the mechanism, its accounting, and a site's budget.

`accounting` turns ledger events into epsilon, `budget` plans a study and charges its rounds, `dpsgd` is the noisy
gradient. Nothing here reads images or weights; the unit is always the patient.
"""
