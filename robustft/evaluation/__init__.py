"""What a model is worth: top-1 with class subsets and label sets, and the results file of a run."""
