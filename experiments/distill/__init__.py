"""Modules of distill_backbone.py: synthetic images, and a student that is trained on them."""
