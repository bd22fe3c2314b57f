"""Thresholds in the metadata of exported graphs, for programs that apply them to the scores.

They are in the JSON file next to a graph and, for ONNX, also in the metadata of the graph itself.
"""

import json
from pathlib import Path

from uadjax.export import graph_hash, runtimes
from uadjax.model import calibration
from uadjax.system import files


def find(folder: Path, arrays_sha256: str) -> list[Path]:
  """Return the graphs that are directly in a folder and were exported from a model's arrays."""
  graphs = []
  for path in sorted(folder.glob('*.json')):
    graph = path.with_suffix('')
    if graph.exists() and graph_hash.read_metadata(graph).get('arrays_sha256') == arrays_sha256:
      graphs.append(graph)
  return graphs


def is_outdated(graph: Path, thresholds: calibration.Thresholds) -> bool:
  """Return whether the JSON file next to a graph has other thresholds than these."""
  values = graph_hash.read_metadata(graph).get('thresholds')
  return not isinstance(values, dict) or {**values, **calibration.by_name(thresholds)} != values


def stage(stage_file: files.Stage, graph: Path, thresholds: calibration.Thresholds) -> None:
  """Stage the files of a graph with other thresholds.

  An ONNX graph stays as it is if the package onnx is missing or the file is damaged: a new hash
  would hide the damage.
  """
  metadata = {**graph_hash.read_metadata(graph), 'thresholds': thresholds._asdict()}
  if metadata.get('format') == 'onnx':
    if graph_hash.describe_damage(graph):
      return
    try:
      content = _onnx_with_thresholds(graph, thresholds)
    except Exception:  # No package, or an error of protobuf for a damaged file.
      return
    stage_file(graph, content)  # It is replaced after its JSON file, see `describe_damage`.
    metadata |= graph_hash.after_change(graph, content)
  stage_file(graph_hash.metadata_path(graph), files.to_json_bytes(metadata))


def _onnx_with_thresholds(graph: Path, thresholds: calibration.Thresholds) -> bytes:
  import onnx

  model = onnx.load(graph, load_external_data=False)
  for entry in model.metadata_props:
    if entry.key == runtimes.METADATA_KEY:
      metadata = {**json.loads(entry.value), 'thresholds': thresholds._asdict()}
      entry.value = files.to_json(metadata, indent=None)
  return model.SerializeToString()
