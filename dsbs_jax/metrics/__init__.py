"""How predictions are judged: accuracy, equations by value, and whether a difference between methods is real."""
