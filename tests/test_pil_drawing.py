import hypothesis
from hypothesis import strategies
import numpy as np
from PIL import Image

from uadjax.visualization import pil_drawing


@hypothesis.given(strategies.text(max_size=80), strategies.floats(0, 600))
def test_names_are_shortened_in_their_middle_to_what_fits(name, width):
  font, shown = pil_drawing.choose_font(name)
  assert len(shown) == len(name)
  short = pil_drawing.shorten_to_width(shown, 20, width, font)
  if '…' in short and '…' not in shown:
    head, tail = short.split('…')
    assert shown.startswith(head)
    assert shown.endswith(tail)
    assert 0 <= len(head) - len(tail) <= 1
  elif short:
    assert short == shown
  canvas = Image.new('RGB', (640, 40), 'white')
  pil_drawing.draw_text(canvas, (5, 5), short, 20, (0, 0, 0), 'la', font_path=font)


def test_what_fits_is_not_shortened():
  name = 'scratch/0001.png'
  assert pil_drawing.shorten_to_width(name, 20, pil_drawing.text_width(name, 20)) == name
  assert pil_drawing.text_width(pil_drawing.shorten_to_width(name, 20, 100), 20) <= 100
  assert pil_drawing.shorten_to_width(name, 20, 0) == ''


def test_a_box_stands_for_what_no_font_has():
  for odd in ('\n', '\x00', '\udc80', '\U0010ffff'):
    assert pil_drawing.choose_font(f'a{odd}b')[1] == 'a□b', ascii(odd)


def test_letters_of_many_scripts_are_at_hand():
  name = 'Ölfleck_Прибор_ελιά.png'
  assert pil_drawing.choose_font(name) == (pil_drawing.bundled_font(), name)


def test_lines_are_where_they_should_be():
  for at in ((20.0, 20.0), (0.0, 0.0), (-3.0, 39.5), (100.0, -50.0)):
    canvas = Image.new('RGB', (40, 40), 'white')
    pil_drawing.draw_lines(canvas, [[at, (at[0] + 8, at[1])]], 6, (0, 0, 0))
    y, x = np.mgrid[:40, :40] + 0.5
    away = np.hypot(x - np.clip(x, at[0], at[0] + 8), y - at[1])
    drawn = np.asarray(canvas)[..., 0]
    assert (drawn[away < 2] == 0).all(), at
    assert (drawn[away > 4.2] == 255).all(), at
