"""Studies: methods × seeds × data sets from one YAML, to a CSV, a report and plots (``tools/compare.py``)."""
