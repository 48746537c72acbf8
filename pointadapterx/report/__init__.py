"""One HTML file that tells a run: numbers, pictures, clouds that turn, and how to repeat it."""
