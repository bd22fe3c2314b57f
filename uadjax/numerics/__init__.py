"""Mathematics on arrays, independent of images, settings and files.

Functions here raise `ValueError`, know no configuration key and show no progress. Each module
implements one idea, and its test contains the slow, obvious definition.
"""
