"""Builds data sets out of Debian packages: which models, how their surfaces are sampled, and what is written.

Nothing of a package is run or unpacked to the disk; its files are read out of the archive. Lists say which models a set
has, with class and side of the split. A model's points are seeded by its name, so everybody gets the same ones; that is
why meshes are read here, in the order of their files, and not by a library whose order changes with its versions.
"""
