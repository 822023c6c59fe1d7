"""Patient-level differential privacy, whatever the study: the noisy gradient, its accounting, what a mechanism claims.

`dpsgd` is one step, `accounting` its epsilon, `trust` what may be said of it. Nothing here reads images or weights;
the unit is always the patient.
"""
