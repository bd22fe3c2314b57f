"""Table of the layouts of published datasets: one row each.

The datasets of a row do not differ in their layout:

- `mvtec`: MVTec AD, MVTec LOCO, BTAD, MPDD, and any dataset that is organized like them.
- `mvtec_ad_2`: MVTec AD 2. Its private test images have no labels.
- `mvtec_3d`: MVTec 3D-AD, of which only the color images are read.
- `kolektor`: KolektorSDD, which is not split into training and test images.
- `kolektor_2`: KolektorSDD2, and masks that Roboflow exports, which has a validation set, too.
- `dagm`: DAGM 2007.
- `magnetic_tile`: the magnetic tile defects of Huang et al., which are not split either.

VisA has a list of its images; see `visa`.
"""

from uadjax.data.layouts.tree import Tree, VALIDATION

TREES = {
  'mvtec_ad_2': Tree(
    marker='test_public',
    train='train/{good}',
    validation=('{validation}/{good}',),
    test='test_public/{kind}',
    masks='../ground_truth/{kind}',
  ),
  'mvtec_3d': Tree(
    marker='train/{good}/rgb',
    train='train/{good}/rgb',
    validation=('{validation}/{good}/rgb',),
    test='test/{kind}/rgb',
    masks='../gt',
  ),
  'kolektor_2': Tree(
    marker='train/*_{mask}.*',
    train='train',
    validation=('{validation}',),
    test='test',
    labels_by_mask=True,
  ),
  'dagm': Tree(marker='train/label', train='train', test='test', labels_by_mask=True),
  'kolektor': Tree(marker='kos*/*_label.*', train='kos*', labels_by_mask=True),
  'magnetic_tile': Tree(marker='mt_free/imgs', train='mt_free/imgs', test='mt_{kind}/imgs'),
  'mvtec': Tree(
    marker='',
    train='train/{good}/**',
    validation=VALIDATION,
    test='test/{kind}/**',
    masks='../../ground_truth/{kind}',
  ),
}
