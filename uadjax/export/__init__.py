"""Models in other runtimes: write a graph, compare it with its model, and run it.

`exporter` writes a graph by one module per format (`onnx`, `stablehlo`, `tensorflow`) and verifies
it; `runtimes` opens and runs ONNX graphs and imports none of the exporters.
"""
