"""Categories of MVTec AD, and their groups."""

TEXTURES = ('carpet', 'grid', 'leather', 'tile', 'wood')
OBJECTS = (
  *('bottle', 'cable', 'capsule', 'hazelnut', 'metal_nut', 'pill', 'screw', 'toothbrush'),
  *('transistor', 'zipper'),
)
GROUPS = {'textures': TEXTURES, 'objects': OBJECTS}
