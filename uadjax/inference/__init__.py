"""Inference: open a model, predict, draw, and save results.

`pipelines` is the entry point (`create_model`, `create_pipeline`). `predictor` scores images,
`result` holds the verdict on one image, and `score_table` writes verdicts on folders that are too
large for results in memory.
"""
