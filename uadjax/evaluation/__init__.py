"""How good a model is: predicted records compared with labels and masks.

Metrics of a test set, their curves, thresholds from labeled images, and the HTML report.
"""
