"""Builders for TensorFlow Datasets; importing one registers it."""
