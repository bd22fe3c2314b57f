"""Files of images with 16 bits per channel in color, which Pillow does not write."""

import struct
import zlib

import numpy as np

_COLOR_TYPES = {2: 4, 3: 2, 4: 6}  # Of PNG, by the number of channels.


def png(values: np.ndarray) -> bytes:
  """Encode [h w c] of 16 bits with every kind of PNG filter that needs no search."""
  h, w, c = values.shape
  rows = values.astype('>u2').reshape(h, -1).view(np.uint8)
  filtered, previous = [], np.zeros_like(rows[0])
  for y, row in enumerate(rows):
    left = np.concatenate([np.zeros(2 * c, np.uint8), row[: -2 * c]])
    filtered.append(bytes([y % 3]) + (row - (0, left, previous)[y % 3]).astype(np.uint8).tobytes())
    previous = row
  header = struct.pack('>IIBBBBB', w, h, 16, _COLOR_TYPES[c], 0, 0, 0)
  chunks = (b'IHDR', header), (b'IDAT', zlib.compress(b''.join(filtered))), (b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    for kind, content in chunks
  )


def tiff(
  values: np.ndarray, order: str = '<', is_compressed: bool = False, is_planar: bool = False
) -> bytes:
  """Encode [h w 3] or [h w 4] of 16 bits in a byte order, '<' or '>'.

  With `is_planar`, only the header says that channels are apart.
  """
  h, w, c = values.shape
  content = values.astype(f'{order}u2').tobytes()
  content = zlib.compress(content) if is_compressed else content
  tags: dict[int, int | list[int]] = {
    256: w, 257: h, 258: [16] * c, 259: 8 if is_compressed else 1, 262: 2, 273: [0], 277: c, 278: h,
    279: [len(content)], 284: 1 + is_planar,
  } | ({338: 2} if c == 4 else {})  # fmt: skip
  bits_at = 8 + 2 + 12 * len(tags) + 4
  tags[273] = [bits_at + 2 * c]
  entries = []
  for tag, value in tags.items():
    if tag == 258:
      entries.append(struct.pack(f'{order}HHII', tag, 3, c, bits_at))
    elif isinstance(value, list):
      entries.append(struct.pack(f'{order}HHII', tag, 4, 1, value[0]))
    else:
      entries.append(struct.pack(f'{order}HHIHH', tag, 3, 1, value, 0))
  start = b'II*\0' if order == '<' else b'MM\0*'
  header = start + struct.pack(f'{order}IH', 8, len(tags)) + b''.join(entries) + bytes(4)
  return header + struct.pack(f'{order}{c}H', *[16] * c) + content
