"""One HTML file that shows a whole evaluation, without any network, and the same as JSON.

The charts are a few hundred lines of our own over SVG: of the libraries that can be inlined, uPlot
and Observable Plot have no draggable thresholds, and Plotly weighs 3.5 MB.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uadjax.data.records import Record
from uadjax.evaluation import curves
from uadjax.evaluation.report import content, document, gallery
from uadjax.system import files, logging


def write(
  path: Path,
  curve_data: curves.CurveData,
  metrics: Mapping[str, Any],
  records: Sequence[Record],
  pictures: Sequence[gallery.Picture],
  provenance_info: Mapping[str, Any],
) -> None:
  """Write the page, and beside it with the suffix .json what it is drawn from.

  Pictures that would make it larger than 20 MB are left out from the end, and it is said.

  Args:
    path: of the page.
    drawn: scores, curves and thresholds.
    metrics: as of the result file.
    records: the images, as many and in the order of `drawn.scores`.
    shots: pictures of some of them, the most important first.
    about: where all of this comes from; see `provenance.of`.
  """
  report_data = content.build(curve_data, metrics, records, pictures, provenance_info)
  html_report = document.render(report_data, pictures)
  if html_report.num_pictures < len(pictures):
    logging.LOG.warning(
      '%s shows the first %d of %d pictures: more would not fit into %.0f MB.',
      path.name, html_report.num_pictures, len(pictures), document.MAX_BYTES / 1e6,
    )  # fmt: skip
  files.write_text(path, html_report.text)
  files.write_json(path.with_suffix('.json'), report_data)
