"""Formats of point files and meshes, one module each: ``read(path)`` gives a file's points or its surface."""
