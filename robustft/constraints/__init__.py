"""Constraints in weight space, one file each; what they are is in robustft/training/constraint.py."""
