"""Builders for TensorFlow Datasets, one module per dataset; importing a module registers it.

The rest of uadjax does not import them: they are for users whose data is in TensorFlow Datasets.
"""
