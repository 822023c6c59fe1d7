"""How patients are protected: one file a mechanism, and one table (`table`) that names them all.

A mechanism says what it claims and whom one trusts for it, which fields of a study it needs, what a site's step does,
what the next model is, and what a round costs. No other room asks which mechanism a study has.
"""
