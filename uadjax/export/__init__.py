"""Models for other runtimes: writing a graph, comparing it with its model, and running it.

`exporter` writes a graph by one module per format (`onnx`, `stablehlo`, `tensorflow`) and verifies
it; `runtimes` opens and runs ONNX graphs and imports none of the exporters.
"""
