"""Layout of MVTec AD: train/good, test/<defect>, ground_truth/<defect>."""

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
GROUPS = {'textures': TEXTURES, 'objects': OBJECTS}


def detect(directory: Path) -> bool:
  """Return whether there is a folder 'train', or only test images without a 'train.txt'."""
  has_only_test = (directory / 'test').is_dir() and not (directory / 'train.txt').is_file()
  return (directory / 'train').is_dir() or has_only_test


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a category in the layout of MVTec AD.

  Files are train/good/*, test/<defect>/*, and ground_truth/<defect>/<stem>_mask.png.
  """
  train_folder, test_folder, mask_folder = (
    directory / name for name in ('train', 'test', 'ground_truth')
  )
  train_records, layout_problems = scanning.training_records(train_folder / 'good')
  test_records = tuple(
    record
    for folder in (scanning.folders_in(test_folder) if test_folder.is_dir() else ())
    for record in scanning.defect_records(folder, folder.name, mask_folder / folder.name)
  )
  if test_folder.is_dir() and not test_records:
    layout_problems.append(
      problems.error('empty split', test_folder, f'No images in the folders of {test_folder}.')
    )
  layout_problems += [
    problems.warning(
      'defects in training',
      folder,
      f'{folder} ({len(scanning.images_in(folder))} images) is not used: training images are those '
      f'in {train_folder / "good"}, and defective images belong in {test_folder / folder.name}.',
    )
    for folder in (scanning.folders_in(train_folder) if train_folder.is_dir() else ())
    if folder.name != 'good' and scanning.images_in(folder)
  ]
  used_masks = {record.mask for record in test_records}
  layout_problems += [
    problems.warning(
      'mask without image', mask, f'{mask} has no matching image in {test_folder / folder.name}.'
    )
    for folder in (scanning.folders_in(mask_folder) if mask_folder.is_dir() else ())
    for mask in scanning.images_in(folder)
    if mask not in used_masks
  ]
  return record_types.Splits(train_records, test_records), layout_problems
