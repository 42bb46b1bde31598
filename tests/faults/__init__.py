"""Faults, load and bad input, tried on purpose: ``python -m tests.faults``; see docs/reliability.md."""
