"""The HTML report of an evaluation: one file that needs no network, and its data as JSON.

The charts are drawn by a few hundred lines of custom SVG code. Other libraries that can be inlined
are unsuitable: uPlot and Observable Plot have no draggable thresholds, and Plotly takes 3.5 MB.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from uadjax.data.records import Record
from uadjax.evaluation import curves
from uadjax.evaluation.report import content, document, gallery
from uadjax.system import files, logging


def write(
  path: Path,
  curve_data: curves.CurveData,
  metrics: Mapping[str, object],
  records: Sequence[Record],
  pictures: Sequence[gallery.Picture],
  provenance_info: Mapping[str, object],
) -> None:
  """Write the report as HTML, and its data next to it with the suffix .json.

  The last pictures are omitted, with a warning, if the report would exceed 20 MB.

  Args:
    path: path of the HTML file.
    curve_data: scores, rankings and thresholds.
    metrics: metrics, as in the result file.
    records: records of the images, in the order of `curve_data.scores`.
    pictures: pictures of some images, the most important first.
    provenance_info: origin of the model and the data; see `provenance.collect`.
  """
  report_data = content.build(curve_data, metrics, records, pictures, provenance_info)
  html, num_pictures = document.render(report_data, pictures)
  if num_pictures < len(pictures):
    logging.LOG.warning(
      '%s shows the first %d of %d pictures; more would exceed %.0f MB.',
      path.name, num_pictures, len(pictures), document.MAX_BYTES / 1e6,
    )  # fmt: skip
  files.write_text(path, html)
  files.write_json(path.with_suffix('.json'), report_data)
