"""Everything that scoring needs and that is saved: model directory, thresholds, scores of records.

`model_dir` is the directory with its manifest, `array_file` the arrays in it, `calibration` the
thresholds, `scoring` the scores of many records on any mesh, and `incremental_state` what learning
from more images needs.
"""
