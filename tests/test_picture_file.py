"""Files of pictures: no picture is too large to be saved, and none loses its note."""

import io

from PIL import ExifTags, Image

from uadjax.visualization import picture_file


def test_a_picture_that_is_too_large_for_its_format_becomes_png(tmp_path, monkeypatch, caplog):
  caplog.set_level('INFO')
  limits = {'.jpg': 65_500, '.JPEG': 65_500, '.webp': 16_383}
  for suffix in (*picture_file.SUFFIXES, '.JPEG'):
    for side in (16_383, 16_384, 65_500, 65_501, 100_000):
      for size in ((side, 1), (1, side)):
        caplog.clear()
        fits = side <= limits.get(suffix.replace('jpeg', 'jpg'), side)
        path = picture_file.save(Image.new('RGB', size), tmp_path / f'a{suffix}')
        assert path.suffix == (suffix if fits else '.png')
        assert [*tmp_path.iterdir()] == [path]
        assert bool(caplog.messages) == (not fits)
        assert all(f'too large for {suffix}; saved as {path}.' in text for text in caplog.messages)
        with Image.open(path) as picture:
          expected = Image.registered_extensions()[path.suffix.lower()]
          assert (picture.format, picture.size) == (expected, size)
        path.unlink()
  monkeypatch.setitem(picture_file._LIMITS, 'WEBP', (16_383, 100))  # Of its many pixels.
  assert picture_file.save(Image.new('RGB', (11, 10)), tmp_path / 'a.webp').suffix == '.png'
  assert picture_file.save(Image.new('RGB', (10, 10)), tmp_path / 'b.webp').suffix == '.webp'


def test_a_note_is_in_the_file_and_without_one_there_is_no_exif():
  for suffix in sorted({*picture_file.SUFFIXES} - {'.bmp'}):  # BMP has no metadata.
    for note in ('', 'images reduced'):
      picture, file = Image.new('RGB', (8, 8)), io.BytesIO()
      if note:
        picture.getexif()[ExifTags.Base.ImageDescription] = note
      picture_file.write(picture, file, suffix)
      with Image.open(file) as saved:
        assert saved.getexif().get(ExifTags.Base.ImageDescription, '') == note, suffix
        assert suffix.startswith('.tif') or bool(saved.info.get('exif')) == bool(note), suffix
