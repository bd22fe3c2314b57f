"""Builders for TensorFlow Datasets, one module per dataset; importing one registers it.

Nothing else imports them: they are for those who have their data in TensorFlow Datasets.
"""
