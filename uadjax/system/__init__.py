"""Helpers around the program: files, HTTP, threads, memory, signals, logging, progress, text.

Nothing here depends on images, detectors or settings. `tensorflow` is the only place that imports
TensorFlow, without its log output.
"""
