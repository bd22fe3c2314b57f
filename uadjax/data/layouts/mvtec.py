"""The layout of MVTec AD: train/good, test/<defect>, ground_truth/<defect>."""

from pathlib import Path

from uadjax.data import problems, records as record_types
from uadjax.data.layouts import scanning

TEXTURES = ('carpet', 'grid', 'leather', 'tile', 'wood')
OBJECTS = (
  'bottle',
  'cable',
  'capsule',
  'hazelnut',
  'metal_nut',
  'pill',
  'screw',
  'toothbrush',
  'transistor',
  'zipper',
)
GROUPS = {'textures': TEXTURES, 'objects': OBJECTS}  # As MVTec AD sorts its categories.


def fits(directory: Path) -> bool:
  """Whether there is a folder train; or a folder test alone, to be judged, and no list."""
  by_test = (directory / 'test').is_dir() and not (directory / 'train.txt').is_file()
  return (directory / 'train').is_dir() or by_test


def splits(directory: Path) -> scanning.Found:
  """<category>/{train/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}."""
  train, test, truth = (directory / name for name in ('train', 'test', 'ground_truth'))
  learn, wrong = scanning.training_records(train / 'good')
  records = tuple(
    record
    for folder in (scanning.folders_in(test) if test.is_dir() else ())  # Fitting needs no test set.
    for record in scanning.defect_records(folder, folder.name, truth / folder.name)
  )
  if test.is_dir() and not records:
    wrong.append(problems.error('empty split', test, f'No images in the folders of {test}.'))
  wrong += [
    problems.warning(
      'defects in training',
      folder,
      f'Nothing is learned from {folder} ({len(scanning.images_in(folder))} images), only from '
      f'{train / "good"}; defects belong in {test / folder.name}.',
    )
    for folder in (scanning.folders_in(train) if train.is_dir() else ())
    if folder.name != 'good' and scanning.images_in(folder)
  ]
  used = {record.mask for record in records}
  wrong += [
    problems.warning(
      'mask without image', mask, f'{mask} belongs to no image in {test / folder.name}.'
    )
    for folder in (scanning.folders_in(truth) if truth.is_dir() else ())
    for mask in scanning.images_in(folder)
    if mask not in used
  ]
  return record_types.Splits(learn, records), wrong
