"""A verdict as a mapping, as JSON, as a picture, as files."""

from collections.abc import Mapping
import json
from pathlib import Path

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
import numpy as np
from PIL import ExifTags, Image
import pytest

from uadjax.cli import result_text
from uadjax.data import image_io, inputs, transforms
from uadjax.data.image_statistics import ImageWarning
from uadjax.errors import ConfigError, DataError, UserError
from uadjax.experiment import evaluate_run
from uadjax.inference import pipelines, predictor
from uadjax.inference.result import Result
from uadjax.model import calibration
from uadjax.numerics.regions import encode_run_lengths, find_regions
from uadjax.visualization import sheet

LIMITS = calibration.Thresholds(2.0, 0.5, 1.0, 'normals', 0.01, 0.05, 99, 0.01, 0.03, 299)
OPS = transforms.parse('resize(16)')


def verdict(name='a/part.png', score=3.0, pixels=None, inner='', warnings=()):
  pixels = np.full((20, 30, 3), 90, np.uint8) if pixels is None else pixels
  map = np.zeros((16, 16), np.float32)
  map[4:8, 9:12] = 2.0
  source = inputs.Source(name, pixels, Path(inner))
  return Result(source, 'part', OPS, LIMITS, pixels.shape[:2], score, map, warnings)


@pytest.fixture
def unread():
  return Result.unreadable(
    inputs.Source('b.png', b''), 'b', LIMITS, 'Cannot read b.png: it is empty.'
  )


def test_a_result_is_a_mapping_of_its_attributes():
  result = verdict()
  assert isinstance(result, Mapping)
  assert list(result) == [
    'input_path', 'score', 'label', 'warnings',
    'image_threshold', 'pred', 'anomaly_map', 'peak', 'at', 'regions',
  ]  # fmt: skip
  assert all(result[key] is getattr(result, key) for key in result if key not in ('pred',))
  assert dict(result)['label'] == 'NG'
  with pytest.raises(KeyError):
    result['no_such_key']


def test_results_can_be_looked_for_in_a_list():
  first, second = verdict(), verdict()
  assert [second, first].index(first) == 1
  assert len({first, second}) == 2


def test_the_label_follows_the_thresholds():
  labels = {score: verdict(score=score).label for score in (1.0, 1.5, 2.5)}
  assert labels == {1.0: 'OK', 1.5: 'review', 2.5: 'NG'}


WARNINGS = [ImageWarning('underexposed', 'It is dark.'), ImageWarning('blurred', 'It is blurred.')]


def test_an_image_with_warnings_is_reviewed_at_least():
  labels = {score: verdict(score=score, warnings=WARNINGS).label for score in (1.0, 1.5, 2.5)}
  assert labels == {1.0: 'review', 1.5: 'review', 2.5: 'NG'}
  assert verdict(score=float('nan'), warnings=WARNINGS).label == 'NG'


def test_warnings_are_told_everywhere(capsys):
  result = verdict(score=1.0, warnings=WARNINGS)
  expected = [
    {'code': 'underexposed', 'message': 'It is dark.'},
    {'code': 'blurred', 'message': 'It is blurred.'},
  ]
  assert result['warnings'] == result.summary()['warnings'] == result.json['warnings'] == expected
  result.print()
  assert json.loads(capsys.readouterr().out)['warnings'] == expected
  for text in (result.headline, result.caption, str(result_text.verdict_line(result))):
    assert 'underexposed blurred' in text
  assert verdict().warnings == []
  for text in (result.headline, result.caption, str(result_text.verdict_line(result))):
    assert 'look at x ' in text  # One to review.
  assert 'look at' not in verdict(score=3.0).caption


def test_mask_and_map_have_the_original_size():
  result = verdict()
  assert result.pred.shape == result.anomaly_map.shape == (20, 30)
  assert result.pred.dtype == np.uint8
  assert result.anomaly_map.dtype == np.float32
  np.testing.assert_array_equal(result.pred == 255, result.anomaly_map > LIMITS.pixel_threshold)
  assert set(np.unique(result.pred)) == {0, 255}


def test_nothing_outside_a_crop_is_marked():
  source = inputs.Source('x', np.zeros((32, 64, 3), np.uint8))
  ops = transforms.parse('center_crop(16)')
  result = Result(source, 'x', ops, LIMITS, (32, 64), 3.0, np.full((16, 16), 2.0, np.float32))
  assert result.predicted_mask.any()
  assert not result.predicted_mask[~result.visible].any()


@hypothesis.given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_run_lengths_are_those_of_coco(mask):
  run_lengths = encode_run_lengths(mask)
  flat = [bit for n, bit in zip(run_lengths['counts'], [0, 1] * 99, strict=False) for _ in range(n)]
  assert run_lengths['size'] == list(mask.shape)
  np.testing.assert_array_equal(np.array(flat, bool).reshape(mask.shape[::-1]).T, mask)


@hypothesis.given(arrays.arrays(bool, (6, 7)), strategies.randoms(use_true_random=False))
def test_regions_are_those_that_a_flood_finds(mask, random):
  map = np.array([[random.random() for _ in range(7)] for _ in range(6)], np.float32)
  left, expected = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
  while left:
    region, edge = set(), [left.pop()]
    while edge:
      y, x = edge.pop()
      region.add((y, x))
      near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
      left -= near
      edge += near
    ys, xs = zip(*region, strict=True)
    at = max(region, key=lambda p: (map[p], (-p[0], -p[1])))
    box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
    expected.append((box, len(region), float(map[at]), at[::-1]))
  assert sorted(map_ for map_ in find_regions(mask, map)) == sorted(expected)


def test_regions_come_with_the_largest_peak_first():
  result = verdict()
  map = np.zeros((16, 16), np.float32)
  map[1:3, 1:3], map[12:15, 12:15] = 3.0, 5.0
  result = Result(result._source, 'x', OPS, LIMITS, (16, 16), 3.0, map)
  assert [region.peak for region in result.regions] == [5.0, 3.0]
  assert result.regions[0].box == (12, 12, 15, 15)
  assert result.regions[0].area == 9
  assert result.regions[0].at == (12, 12)


def test_json_is_what_every_parser_reads(tmp_path):
  result = verdict()
  for masks in ('rle', 'nested', 'none'):
    path = result.save_to_json(tmp_path / 'x.json', masks=masks)
    content = json.loads(path.read_text())
    assert content == json.loads(json.dumps(result.to_json(masks))), masks
    assert content['score'] == 3.0, masks
    assert content['regions'][0]['area'] == result.regions[0].area, masks
    if masks == 'nested':
      np.testing.assert_array_equal(content['pred'], result.pred)
    else:
      assert ('pred' in content) == (masks == 'rle')


def test_an_unknown_way_to_write_masks_is_refused():
  with pytest.raises(ConfigError, match=r"'bits'.*choose from"):
    verdict().to_json('bits')


def test_the_attribute_is_what_is_saved(tmp_path):
  result = verdict()
  assert json.loads(result.save_to_json(tmp_path / 'x.json').read_text()) == json.loads(
    json.dumps(result.json)
  )


def test_numbers_that_are_not_finite_become_null(tmp_path):
  result = verdict(score=float('nan'))
  assert result.label == 'NG'  # It was never seen to be good.
  assert json.loads(result.save_to_json(tmp_path / 'x.json').read_text())['score'] is None


def test_printing_leaves_the_mask_out(capsys):
  result = verdict(name='größe.png')
  result.print(json_format=True, indent=2, ensure_ascii=False)
  stdout = capsys.readouterr().out
  assert json.loads(stdout)['pred'] == '...'
  assert 'größe' in stdout
  result.print(format_json=True, ensure_ascii=True)
  assert 'gr\\u00f6' in capsys.readouterr().out
  result.print(json_format=False)
  assert capsys.readouterr().out == result.str + '\n'
  assert result.str.count('\n') == 0
  assert "'pred': '...'" in result.str


def test_a_directory_takes_both_files_under_the_images_name(tmp_path):
  result = verdict(inner='kinds/cut')
  picture, json_path = result.save_all(tmp_path / 'new.d')
  assert picture == tmp_path / 'new.d' / 'kinds' / 'cut' / 'part_res.png'
  assert json_path == picture.with_suffix('.json')
  assert sorted(picture.parent.iterdir()) == [json_path, picture]


def test_the_picture_has_the_suffix_of_the_image(tmp_path):
  for suffix in ('.jpg', '.png', '.bmp', '.tif', '.webp'):
    result = verdict(name=f'a/part{suffix.upper()}')
    path = result.save_to_img(tmp_path)
    assert path == tmp_path / f'part_res{suffix}'
    with Image.open(path) as picture:
      assert picture.size == result.img['res'].size, suffix


def test_a_picture_goes_into_the_file_that_is_named(tmp_path):
  assert verdict().save_to_img(tmp_path / 'mine.png') == tmp_path / 'mine.png'
  with pytest.raises(ConfigError, match=r'mine\.pdf.*\.png'):
    verdict().save_to_img(tmp_path / 'mine.pdf')
  assert [path.name for path in tmp_path.iterdir()] == ['mine.png']


SAVED = {
  'save_all': lambda path: verdict().save_all(path),
  'save_to_img': lambda path: verdict().save_to_img(f'{path}/'),
  'save_to_img, a file': lambda path: verdict().save_to_img(path / 'x.png'),
  'save_to_json': lambda path: verdict().save_to_json(f'{path}/'),
  'save_to_json, a file': lambda path: verdict().save_to_json(path / 'x.json'),
  'save_results': lambda path: list(predictor.save_results(iter([verdict()]), path)),
  'write_settings': pipelines.write_settings,
  'write_report': lambda path: evaluate_run.write_report(path, path, '', path / 'x.html', 'cpu'),
}


@pytest.mark.parametrize('name', SAVED)
def test_a_result_that_cannot_be_saved_is_an_error_with_the_path(name, tmp_path):
  file = tmp_path / 'file'
  file.write_bytes(b'no folder')
  too_long = [tmp_path / ('long' * 99)] if name != 'write_report' else []
  for path in (file, file / 'new', *too_long):
    with pytest.raises(UserError) as caught:
      SAVED[name](path)
    assert str(path) in str(caught.value)
    assert 'Errno' not in str(caught.value)
  assert [*tmp_path.iterdir()] == [file]


def test_a_reduced_picture_is_told_of_in_its_file_and_in_json(tmp_path, monkeypatch):
  result = verdict(pixels=np.full((200, 300, 3), 90, np.uint8))
  picture, json_path = result.save_all(tmp_path / 'full')
  assert 'picture_scale' not in json.loads(json_path.read_text())
  height, width = image_io.image_size(picture)
  monkeypatch.setattr(sheet, 'MAX_PIXELS', width * height - 1)
  picture, json_path = result.save_all(tmp_path / 'reduced')
  assert json.loads(json_path.read_text())['picture_scale'] == result.picture_scale < 1
  with Image.open(picture) as reduced:
    assert reduced.width * reduced.height < width * height
    description = reduced.getexif()[ExifTags.Base.ImageDescription]
    assert description.startswith('images reduced from 300 x 200 to ')
  assert result.pred.shape == (200, 300)


def test_a_picture_that_is_too_long_for_its_format_is_a_png(tmp_path):
  for shape in ((10, 17_000, 3), (17_000, 10, 3)):
    pixels = np.full(shape, 90, np.uint8)
    result = verdict(name='a/part.webp', pixels=pixels)
    picture, json_path = result.save_all(tmp_path / f'{shape}')
    assert (picture.name, json_path.name) == ('part_res.png', 'part_res.json')
    with Image.open(picture) as opened:
      assert opened.format == 'PNG'
    assert result.save_to_img(tmp_path / 'mine.webp') == tmp_path / 'mine.png'


def test_a_result_of_an_unreadable_image_has_the_reason(unread, tmp_path, capsys):
  assert dict(unread) == {'input_path': 'b.png', 'error': 'Cannot read b.png: it is empty.'}
  assert unread.img == {}
  assert np.isnan(unread.score)
  assert (unread.label, unread.image_threshold, unread.regions) == ('', LIMITS.image_threshold, [])
  assert unread.pred.shape == unread.anomaly_map.shape == (0, 0)
  with pytest.raises(DataError, match='it is empty'):
    unread.picture()
  assert [path.name for path in unread.save_all(tmp_path)] == ['b_res.json']
  assert json.loads((tmp_path / 'b_res.json').read_text()) == dict(unread)
  unread.print()
  assert 'it is empty' in capsys.readouterr().out


def test_a_name_that_is_no_text_can_be_saved(tmp_path):
  result = verdict(name='bad\udcff.png')
  assert json.loads(result.save_to_json(tmp_path).read_text())['input_path'] == 'bad\udcff.png'
