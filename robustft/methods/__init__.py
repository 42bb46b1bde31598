"""The systems of the comparison, one file each.

What trains is a ``Method`` (robustft/training/method.py); what does not is a function that returns the model to
evaluate. Both are given what the names of their parameters ask for: robustft/inputs.py lists what there is.
"""
