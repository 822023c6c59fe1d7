"""What of an update is sent: one file a method, and one table (`table`) that names them all.

A method is a public map. A site reduces its update of d values to fewer, these are masked and added, and every party
restores d values from the sum. So the sum of what was reduced has to be the reduction of the sum: but for rounding, a
method is linear. What a map depends on is the round's model, which every party has and signs: one public seed a round.
"""
