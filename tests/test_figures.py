from concurrent import futures
import re

from matplotlib.backends import backend_agg

from uadjax.visualization import figures


def test_a_legend_stands_under_the_axes_and_covers_nothing():
  for width, offset in ((5.0, 4.2), (10.0, 6.0)):
    with figures.style():
      figure = figures.new_figure(width, 4.5, header=0.5)
      axes = figure.subplots()
      axes.set(title='title', xlabel='one line\nand another' if offset > 5 else 'one line')
      for index in range(3):
        axes.plot([0, 1], [index, 1], label='two lines of text\nat the threshold 90 % recall')
      figures.add_legend(axes, offset)
      backend_agg.FigureCanvasAgg(figure).draw()
      legend = axes.get_legend().get_window_extent()
      label, title = axes.xaxis.label.get_window_extent(), axes.title.get_window_extent()
    assert 0 < legend.y0 < legend.y1 < label.y0, width
    assert figure.bbox.x0 < legend.x0 < legend.x1 < figure.bbox.x1, width
    assert title.y1 < figure.bbox.y1 - 0.5 * figure.dpi, width  # Below the header.


def test_a_page_drawn_by_several_threads_is_the_same(tmp_path):
  def draw(number):
    with figures.style():
      figure = figures.new_figure(3.0, 2.0)
      figure.subplots().plot([0, 1], [0, 1], marker='o')
      figures.write(tmp_path / f'{number}', figure)

  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(draw, range(6)))
  for suffix in ('png', 'svg'):
    assert len({path.read_bytes() for path in tmp_path.glob(f'*.{suffix}')}) == 1
    assert len(list(tmp_path.glob(f'*.{suffix}'))) == 6


def test_files_name_neither_day_nor_version(tmp_path):
  with figures.style():
    figure = figures.new_figure(2.0, 2.0)
    figure.subplots()
    figures.write(tmp_path / 'blank', figure)
  assert not re.search(rb'<dc:date>|Matplotlib v', (tmp_path / 'blank.svg').read_bytes())
  assert b'Software' not in (tmp_path / 'blank.png').read_bytes()


def test_a_figure_of_many_rows_has_a_height_that_can_be_saved():
  figure = figures.new_figure(10.0, 1e6)
  assert figure.bbox.height < 2**16
  assert figure.bbox.height * figure.bbox.width < 64.1e6
