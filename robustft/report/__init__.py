"""Tables, plots and the page that compare runs: `python -m robustft.report RUNS...`"""
