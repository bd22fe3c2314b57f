"""Evaluation of a model: its predictions compared with labels and masks.

The package has metrics of a test set, their curves, scores of labeled images from which thresholds
are calibrated, and the HTML report.
"""
