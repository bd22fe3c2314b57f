"""Operating-system helpers: files, HTTP, threads, memory, signals, logging, progress.

Nothing here depends on images, detectors or settings. `tensorflow` is the only place that imports
TensorFlow, without its log output.
"""
