"""From images to verdicts: open a model, predict, draw, and save the results.

`pipelines` is the entry (`create_model`, `create_pipeline`), `predictor` does the work, `result` is
what comes out, `score_table` is for folders that are too large for results in memory.
"""
