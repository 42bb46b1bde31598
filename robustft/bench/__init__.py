"""How fast the training step is: ``python -m robustft.bench``, against a direct implementation and vanilla."""
