"""How sites learn together: one file an algorithm, one table (`table`) that names them all, and who is in a round.

An algorithm says what a site adds to its loss, what every party does with the mean of the updates, and what is
remembered for that behind the weights. Nothing in it is secret, and every party computes the same bits.
"""
