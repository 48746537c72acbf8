"""The shortest ways in: a model by its name, training on a folder or on arrays, a ready adapter."""
