"""The parts of distill_backbone.py: generated pictures, and a student that learns from them."""
