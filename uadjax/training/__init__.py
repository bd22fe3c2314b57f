"""Training of a detector: fit loop, hooks, checkpoints, one-pass fitting and work directory.

`train.train` fits, calibrates and saves one detector with the help of the other modules. No other
package uses Orbax checkpoints or clu.
"""
