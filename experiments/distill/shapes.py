"""A layer of a picture: a grid of cells, turned and bent, with a shape in each.

Whether a cell holds something, where, how large, how turned and in which color follows from a hash
of the cell. So one pass over the pixels draws one shape or a thousand, and costs the same: layers
from coarse to fine make the power law of sizes that occlusion gives to photographs (dead leaves;
Lee, Mumford and Huang 2001), and regular ones make tilings, weaves, brushes and print.

Letters: s side of the canvas, f fields of noise.
"""

from typing import NamedTuple

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt32

Plane = Float[Array, 's s']


class Layer(NamedTuple):
  """Numbers that a layer is drawn from; lengths in cells, unless said.

  Attributes:
    cells: across the canvas.
    turn, shift, stretch: of the grid.
    bend: how far noise moves the grid.
    salt: makes the hash another.
    density: share of cells that hold something.
    jitter: how far shapes are off their cells' centers.
    size: largest radius. `spread`: share by which others are smaller.
    slim: how many times longer than wide.
    turned: whether each shape is turned on its own.
    norms: weights of round, square and diamond, which add up to one.
    lobes: depth of three and of six lobes.
    ring: width of an outline, as a share of the radius; 0 fills the shape.
    strokes: whether strokes are drawn instead: ends of three, and their half width.
    soft: width of the edge in pixels.
    opacity: of the fill.
    color: of the layer; `tone` and `hue`: how much shapes differ from it.
    grain: amplitude of noise. `field`: which noise.
    wave: amplitude, frequency per cell in two directions, hardness, and how noise bends it.
    local: whether the wave turns with the shape. `rings`: whether it spreads from its middle.
    bump: height of shapes, as a share of their radius; `bevel`: share of the radius that rises.
    rough: height of grain and of waves, in pixels.
    shadow: darkness around shapes.
    holds: whether later layers may be confined to this one's shapes. `confined`: whether this is.
  """

  cells: Array
  turn: Array
  shift: Array
  stretch: Array
  bend: Array
  salt: Array
  density: Array
  jitter: Array
  size: Array
  spread: Array
  slim: Array
  turned: Array
  norms: Array
  lobes: Array
  ring: Array
  strokes: Array
  ends: Array
  width: Array
  soft: Array
  opacity: Array
  color: Array
  tone: Array
  hue: Array
  grain: Array
  field: Array
  wave: Array
  frequency: Array
  hardness: Array
  wobble: Array
  local: Array
  rings: Array
  bump: Array
  bevel: Array
  rough: Array
  shadow: Array
  holds: Array
  confined: Array


class Canvas(NamedTuple):
  """What has been drawn: linear colors, heights in pixels, and what confines later layers."""

  color: Float[Array, 's s 3']
  height: Plane
  inside: Plane


def draw(canvas: Canvas, layer: Layer, noise: Float[Array, 'f s s']) -> Canvas:
  """Draw a layer over what there is."""
  side = canvas.height.shape[0]
  field = noise[layer.field]
  across, down = _grid(layer, side, noise)
  column, row = jnp.floor(across), jnp.floor(down)
  dice = _dice(column, row, layer.salt)
  x, y = across - column - 0.5, down - row - 0.5
  x, y = x - layer.jitter * (dice[0] - 0.5), y - layer.jitter * (dice[1] - 0.5)
  radius = layer.size * (1 - layer.spread * dice[2])
  # A turn by half its tangent: no sine for each pixel.
  t = layer.turned * (2 * dice[3] - 1)
  cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
  x, y = (cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius * layer.slim
  flat = _shape(layer, x, y)
  depth = jnp.where(layer.strokes > 0, _strokes(layer, x, y), flat)
  # One cell is side / cells pixels; `depth` is in radii.
  pixels = depth * radius * side / layer.cells
  room = jnp.where(layer.confined > 0, canvas.inside, 1.0)
  there = jnp.where(dice[4] < layer.density, room, 0.0)
  cover = jnp.clip(0.5 - pixels / layer.soft, 0, 1) * there
  from_middle = jnp.where(layer.rings, jnp.sqrt(x * x + y * y + 1e-6), x)
  wave = _wave(
    layer,
    field,
    jnp.where(layer.local, from_middle, across),
    jnp.where(layer.local, y, down),
  )
  shade = layer.tone * (2 * dice[5] - 1) + layer.grain * field + layer.wave * wave
  tint = jnp.stack([dice[6], dice[7], dice[1]], -1) - 0.5
  fill = layer.color[None, None] + shade[..., None] + layer.hue * tint
  dark = layer.shadow * there * jnp.exp(-jnp.maximum(pixels, 0) * (layer.cells / side * 12))
  mix = (cover * layer.opacity)[..., None]
  color = (canvas.color * (1 - dark[..., None])) * (1 - mix) + fill * mix
  rise = jnp.clip(-depth / layer.bevel, 0, 1)
  dome = jnp.sqrt(rise * (2 - rise)) * layer.bump * radius * side / layer.cells
  height = canvas.height + cover * (dome + layer.rough * (field * layer.grain + wave * layer.wave))
  inside = jnp.where(layer.holds > 0, cover, canvas.inside)
  return Canvas(color, height, inside)


def _grid(layer: Layer, side: int, noise: Float[Array, 'f s s']) -> tuple[Plane, Plane]:
  """Coordinates in cells."""
  line = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side - 0.5
  x, y = line[None, :], line[:, None]
  cosine, sine = jnp.cos(layer.turn), jnp.sin(layer.turn)
  across = layer.cells * (cosine * x + sine * y) + layer.shift[0] + layer.bend * noise[0]
  down = layer.cells * layer.stretch * (cosine * y - sine * x) + layer.shift[1]
  return across, down + layer.bend * noise[1]


def _dice(column: Plane, row: Plane, salt: UInt32[Array, '']) -> list[Plane]:
  """Eight numbers of [0, 1) for each cell."""
  mixed = column.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
  mixed += row.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B) + salt
  found = []
  for _ in range(2):
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> jnp.uint32(12))) * jnp.uint32(0x297A2D39)
    mixed = mixed ^ (mixed >> jnp.uint32(15))
    found += [
      ((mixed >> jnp.uint32(k)) & jnp.uint32(255)).astype(jnp.float32) for k in (0, 8, 16, 24)
    ]
  return [x / 256 for x in found]


def _shape(layer: Layer, x: Plane, y: Plane) -> Plane:
  """How far outside a shape of radius one; negative inside."""
  ax, ay = jnp.abs(x), jnp.abs(y)
  r = jnp.sqrt(x * x + y * y + 1e-6)
  reach = layer.norms[0] * r + layer.norms[1] * jnp.maximum(ax, ay) + layer.norms[2] * (ax + ay)
  c = x / r
  three = c * (4 * c * c - 3)  # Cosines of three and six times the angle.
  depth = reach - 1 + layer.lobes[0] * three + layer.lobes[1] * (2 * three * three - 1)
  return jnp.where(layer.ring > 0, jnp.abs(depth + layer.ring) - layer.ring, depth)


def _strokes(layer: Layer, x: Plane, y: Plane) -> Plane:
  """How far outside three strokes that share their middle end, the first one bent."""
  y = y / layer.slim  # Strokes are slim already.
  nearest = jnp.full_like(x, 1e3)
  for i in range(3):
    (ax, ay), (bx, by) = layer.ends[i], layer.ends[i + 1]
    dx, dy = bx - ax, by - ay
    along = jnp.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-3), 0, 1)
    bow = 2 * layer.lobes[0] * along * (1 - along)
    ex, ey = x - ax - along * dx - bow * dy, y - ay - along * dy + bow * dx
    nearest = jnp.minimum(nearest, ex * ex + ey * ey)
  return jnp.sqrt(nearest + 1e-6) - layer.width


def _wave(layer: Layer, field: Plane, x: Plane, y: Plane) -> Plane:
  """Stripes, bent by noise; with a second direction, a weave of both."""
  bent = layer.wobble * field
  one = jnp.sin(layer.frequency[0] * x + layer.frequency[1] * y + bent)
  two = jnp.where(layer.frequency[2] > 0, jnp.sin(layer.frequency[2] * y + bent), 1.0)
  return jnp.clip(one * two * layer.hardness, -1, 1)
