"""The systems of the comparison, one file each: ``make(run)`` gives the model to evaluate."""
