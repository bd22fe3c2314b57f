"""Layout of MVTec AD: train/good, test/<defect>, ground_truth/<defect>."""

from pathlib import Path

from uadjax.data import problems
from uadjax.data.layouts import scanning
from uadjax.data.records import GOOD, Record, Splits

TEXTURES = ('carpet', 'grid', 'leather', 'tile', 'wood')
OBJECTS = (
  *('bottle', 'cable', 'capsule', 'hazelnut', 'metal_nut', 'pill', 'screw', 'toothbrush'),
  *('transistor', 'zipper'),
)
GROUPS = {'textures': TEXTURES, 'objects': OBJECTS}


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a category in the layout of MVTec AD.

  Files are train/good/*, test/<defect>/*, and ground_truth/<defect>/<stem>_mask.png.
  """
  train, test, truth = (directory / name for name in ('train', 'test', 'ground_truth'))
  good, suffixes, issues = train / GOOD, ', '.join(scanning.SUFFIXES), []
  train_records = tuple(map(Record, scanning.files_in(good)))
  if not train_records:
    message = f'No images in {good}; image files must end in {suffixes}.'
    if not good.is_dir():
      message = f'No folder {good}; it must contain the normal training images.'
    issues.append(problems.error('empty split', good, message))
  test_records = scanning.test_records(test, truth)
  if test.is_dir() and not test_records:
    issues.append(problems.error('empty split', test, f'No images in the folders of {test}.'))
  for folder in scanning.folders_in(train):
    if folder.name != GOOD and (images := scanning.files_in(folder)):
      message = f'{folder} ({len(images)} images) is not used: training images are those in {good}'
      hint = f'defective images belong in {test / folder.name}'
      issues.append(problems.warning('defects in training', folder, f'{message}; {hint}.'))
  used_masks = {record.mask for record in test_records}
  for mask in (path for folder in scanning.folders_in(truth) for path in scanning.files_in(folder)):
    if mask not in used_masks:
      message = f'{mask} has no matching image in {test / mask.parent.name}.'
      issues.append(problems.warning('mask without image', mask, message))
  return Splits(train_records, test_records), issues
