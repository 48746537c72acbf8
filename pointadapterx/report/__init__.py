"""A report of a run in one HTML file: numbers, pictures, interactive clouds, and how to repeat the run."""
