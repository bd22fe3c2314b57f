"""Operating-system helpers: files, HTTP, threads, memory, signals, logging, progress.

What belongs here knows nothing of images, detectors or settings. It also holds the one place where
TensorFlow is imported without its noise.
"""
