"""Drawing: heatmaps, images with their verdict, figures and histograms.

Everything here turns arrays and numbers into pictures; it knows no model and no settings.
matplotlib draws here, in the figures of `evaluation`, and in the report of `data.checks`.
"""
