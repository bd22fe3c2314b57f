"""Fitting a detector: the loop, its hooks and checkpoints, one-pass fitting, the work directory.

`train` fits, calibrates and saves one detector; everything else here is a part of that. Only here
are Orbax checkpoints and clu used.
"""
