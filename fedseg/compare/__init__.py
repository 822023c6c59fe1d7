"""What privacy and federation cost: one study trained in many ways, on the same patients, side by side.

`rows` says what is trained, `cells` trains it and remembers it, `cost` tells beforehand how long that takes, `outcome`
holds the rows against each other patient by patient, `page` and `drawing` show that. It runs where all images are. What
it writes down about single patients stays in the folder of the cells; tables and page hold means alone.
"""
