from hypothesis import given, strategies as st

from uadjax.visualization import fonts


@given(st.text(max_size=40), st.integers(1, 45))
def test_long_names_keep_their_ends(name, max_letters):
  short = fonts.shorten_middle(name, max_letters)
  if len(name) <= max_letters:
    assert short == name
    return
  assert len(short) <= max_letters
  half = (max_letters - 1) // 2
  assert short == name[:half] + '…' + name[len(name) - half :]


def test_a_box_stands_for_what_no_font_has():
  for odd in ('\n', '\x00', '\udc80', '\U0010ffff'):
    assert fonts.printable(f'a{odd}b') == 'a□b', ascii(odd)


def test_letters_of_many_scripts_are_at_hand():
  name = 'Ölfleck_Прибор_ελιά 7 µm.png'
  assert fonts.best_family(name) == fonts.DEFAULT_FAMILY
  assert fonts.printable(name, fonts.DEFAULT_FAMILY) == name
  assert len(fonts.printable('瓶' * 9)) == 9
