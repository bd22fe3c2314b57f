"""Fitted models on disk and their scores: model directory, arrays, thresholds, records.

`model_dir` handles the directory and its manifest, `array_file` the arrays in it, `scorer` batches
of images on devices, runtimes or a mesh. `calibration` has the thresholds, `scoring` the scores of
records that they are calibrated on, and `incremental_state` what fitting further images needs.
"""
