"""Fitted models on disk and their scores: model directory, arrays, thresholds, records.

`model_dir` handles the directory and its manifest, `array_file` the arrays in it, `calibration` the
thresholds, `scoring` the scores of many records on any mesh, and `incremental_state` the state that
fitting further images needs.
"""
