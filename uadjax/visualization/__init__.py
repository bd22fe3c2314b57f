"""Drawing: heatmaps, images with their verdict, figures and histograms.

Everything here turns arrays and numbers into pictures; it knows no model and no settings. Only here
and in the figures of `evaluation` is matplotlib used to draw.
"""
