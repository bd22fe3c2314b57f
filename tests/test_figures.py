from concurrent import futures
import itertools
import re

import numpy as np

from uadjax.visualization import figures


def axes_on(width=5.0, height=4.5):
  figure = figures.new_figure(width, height)
  return figures.add_titled_axes(figure, figures.Box(0, 0, width, height), 'title', 0.8, 0.3)


def extents(axes):
  return [text.get_window_extent() for text in axes.texts]


def test_words_stay_inside_and_cover_nothing():
  corners = (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5), (3.0, -2.0)
  for near, power in itertools.product(corners, (0.02, 1.0, 5.0)):
    with figures.style():
      axes = axes_on()
      x = np.linspace(0, 1, 500)
      drawn = figures.sample_line(axes, x, x**power)
      words = [figures.TextLine('Images  AUROC 0.953'), figures.TextLine('line')]
      covered = figures.place_labels(axes, [figures.Label(words, near)], drawn)
      figures.place_labels(
        axes, [figures.Label([figures.TextLine('Pixels')], near, 'red')], covered
      )
      boxes = extents(axes)
    for box in boxes:
      assert not box.count_contains(drawn), (near, power)
      assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1, (near, power)
      assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1, (near, power)
    assert not boxes[2].overlaps(boxes[0]), (near, power)
    assert not boxes[2].overlaps(boxes[1]), (near, power)


def test_words_are_close_to_what_they_tell_of():
  with figures.style():
    axes = axes_on()
    drawn = figures.sample_line(axes, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    figures.place_labels(axes, [figures.Label([figures.TextLine('word')], (0.5, 0.5))], drawn)
    (box,) = extents(axes)
  middle = axes.transData.transform((0.5, 0.5))
  nearest = np.clip(middle, box.min, box.max)
  assert np.hypot(*(nearest - middle)) < 30  # Of 500 pixels.


def test_leaders_run_through_no_words():
  x = np.linspace(0, 1, 500)
  rising, falling = (x**0.4, x), (1 - 0.3 * x, 1 / (1 + 16 * x))
  pairs = (
    [(0.0, 0.0), (0.0, 0.05)], [(0.0, 0.05), (0.0, 0.0)], [(0.5, 0.5), (0.5, 0.5)],
    [(0.0, 0.78), (0.05, 1.0)], [(0.05, 1.0), (0.0, 0.78)],
  )  # fmt: skip
  for points, curves in itertools.product(pairs, (rising, falling)):
    with figures.style():
      axes = axes_on(7.5, 5.6)
      drawn = np.concatenate([figures.sample_line(axes, x, y) for y in curves])
      lines = [figures.TextLine(f'at the threshold {number} %') for number in range(3)]
      figures.place_labels(axes, [figures.Label(lines, point, 'red') for point in points], drawn)
      boxes = extents(axes)
    for leader in axes.lines:
      along = figures.sample_line(axes, *leader.get_data())
      assert not any(box.count_contains(along) for box in boxes), (points, curves is rising)


def test_words_that_have_no_room_are_written_all_the_same():
  with figures.style():
    axes = axes_on(1.6, 1.5)
    words = [figures.TextLine('far too long for so narrow axes')]
    figures.place_labels(axes, [figures.Label(words, (0.0, 0.0))], np.zeros((0, 2)))
    assert len(axes.texts) == 1


def test_the_widest_line_is_measured_and_leaves_nothing():
  figure = figures.new_figure(3.0, 2.0)
  width = figures.max_text_width(figure, ['i', 'mmmm', 'iii'], 10.0)
  assert width == figures.max_text_width(figure, ['mmmm'], 10.0)
  assert 4 * 0.08 < width < 4 * 10 / 72 * 1.1
  assert not figure.texts


def test_trails_leave_no_gap():
  axes = axes_on()
  trail = figures.sample_line(axes, np.array([0.0, 0, 1]), np.array([0.0, 1, 1]))
  assert np.hypot(*np.diff(trail, axis=0).T).max() < 2.01


def test_a_page_drawn_by_several_threads_is_the_same(tmp_path):
  def draw(number):
    with figures.style():
      figure = figures.new_figure(3.0, 2.0)
      axes = figures.add_titled_axes(figure, figures.Box(0, 0, 3, 2), 'title', 0.5, 0.2)
      axes.plot([0, 1], [0, 1], marker='o')
      figures.write(tmp_path / f'{number}', figure)

  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(draw, range(6)))
  for suffix in ('png', 'svg'):
    assert len({path.read_bytes() for path in tmp_path.glob(f'*.{suffix}')}) == 1
    assert len(list(tmp_path.glob(f'*.{suffix}'))) == 6


def test_files_name_neither_day_nor_version(tmp_path):
  with figures.style():
    figures.write(tmp_path / 'blank', figures.new_figure(1.0, 1.0))
  assert not re.search(rb'<dc:date>|Matplotlib v', (tmp_path / 'blank.svg').read_bytes())
  assert b'Software' not in (tmp_path / 'blank.png').read_bytes()
