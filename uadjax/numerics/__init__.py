"""Mathematics on arrays, without images, settings or files.

Functions here raise `ValueError`, know no configuration key and show no progress. Each module is
one idea, and its test holds the slow, obvious definition.
"""
