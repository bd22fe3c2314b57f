"""Thresholds in the metadata of exported graphs, for programs that apply them to the scores.

They are in the JSON file next to a graph and, for ONNX, also in the metadata of the graph itself.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from uadjax.export import runtimes
from uadjax.model import calibration
from uadjax.system import files


def find(folder: Path, arrays_sha256: str) -> list[Path]:
  """Return the graphs that are directly in a folder and were exported from a model's arrays."""
  graphs = []
  for path in sorted(folder.glob('*.json')):
    graph = path.with_suffix('')
    if graph.exists() and _read_metadata(graph).get('arrays_sha256') == arrays_sha256:
      graphs.append(graph)
  return graphs


def is_outdated(graph: Path, thresholds: calibration.Thresholds) -> bool:
  """Return whether the JSON file next to a graph has other thresholds than these."""
  values = _read_metadata(graph).get('thresholds', {})
  return {**values, **calibration.by_name(thresholds)} != values


def stage(stage_file: files.Stage, graph: Path, thresholds: calibration.Thresholds) -> None:
  """Stage the files of a graph with other thresholds.

  An ONNX graph stays as it is if the package onnx is missing or the file is damaged.
  """
  metadata = {**_read_metadata(graph), 'thresholds': thresholds._asdict()}
  if metadata.get('format') == 'onnx':
    try:
      content = _onnx_with_thresholds(graph, thresholds)
    except Exception:  # No package, or an error of protobuf for a damaged file.
      return
    # The graph is replaced after its JSON file. In between, their hashes differ, so that the graph
    # is not used.
    stage_file(graph, content)
    metadata['sha256'] = hashlib.sha256(content).hexdigest()
  stage_file(_metadata_path(graph), files.to_json_bytes(metadata))


def _onnx_with_thresholds(graph: Path, thresholds: calibration.Thresholds) -> bytes:
  import onnx

  model = onnx.load(graph, load_external_data=False)
  for entry in model.metadata_props:
    if entry.key == runtimes.METADATA_KEY:
      metadata = {**json.loads(entry.value), 'thresholds': thresholds._asdict()}
      entry.value = files.to_json(metadata, indent=None)
  return model.SerializeToString()


def _metadata_path(graph: Path) -> Path:
  return graph.with_name(f'{graph.name}.json')


def _read_metadata(graph: Path) -> dict[str, Any]:
  """Return the content of the JSON file next to a graph; empty if it is not an object."""
  try:
    metadata = json.loads(_metadata_path(graph).read_text())
  except (OSError, ValueError):
    return {}
  return metadata if isinstance(metadata, dict) else {}
