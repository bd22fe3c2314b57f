"""Drawing: colors of anomaly maps, sheets of images, figures and score histograms.

The functions convert arrays and numbers to pictures, independently of models and settings.
matplotlib is used here, in the figures of `evaluation`, and in the report of `data.checks`.
"""
