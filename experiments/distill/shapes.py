"""Layer of a synthetic image: a rotated and distorted grid of cells, each with a shape.

A hash of the cell decides whether it contains a shape, and its position, size, rotation and color.
So one pass over the pixels draws one shape or a thousand at the same cost. Layers from coarse to
fine yield the power law of sizes that occlusion gives to photographs (dead leaves; Lee, Mumford and
Huang 2001). Regular layers yield tilings, weaves, brushes and print.

Letters: s side of the canvas, f noise fields.
"""

from typing import NamedTuple

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt32

Plane = Float[Array, 's s']


class Layer(NamedTuple):
  """Parameters that a layer is drawn from; lengths are in cells unless stated otherwise.

  Attributes:
    cells_across: cells across the canvas.
    rotation: rotation of the grid.
    shift: offset of the grid.
    stretch: aspect of the grid.
    grid_distortion: amplitude of the noise that moves the grid.
    hash_salt: salt of the hash.
    density: share of cells that contain a shape.
    jitter: largest offset of shapes from the centers of their cells.
    max_radius: largest radius of a shape.
    size_variation: share by which the smallest shapes are smaller.
    elongation: length of a shape divided by its width.
    shape_rotation: range of the random rotation of each shape.
    norm_weights: weights of round, square and diamond; they sum to one.
    lobe_depths: depth of three and of six lobes.
    outline_width: width of an outline, as a share of the radius; 0 fills the shape.
    uses_strokes: whether strokes are drawn instead of shapes.
    stroke_ends: end points of the three strokes.
    stroke_half_width: half width of strokes.
    edge_softness: width of the edge in pixels.
    opacity: opacity of the fill.
    color: color of the layer.
    tone_variation: difference in brightness between shapes.
    hue_variation: difference in hue between shapes.
    noise_amplitude: amplitude of the noise in a shape.
    noise_index: index of the noise field.
    wave_amplitude: amplitude of the wave pattern.
    wave_frequency: x and y frequency of the first wave, and y frequency of a second (0: none).
    wave_hardness: gain of the wave before clipping.
    wave_distortion: phase noise of the wave.
    wave_follows_shape: whether the wave rotates with the shape.
    has_rings: whether the wave spreads from the center of the shape.
    relief_height: height of shapes, as a share of their radius.
    bevel_width: share of the radius over which the height rises.
    roughness: height of noise and waves in pixels.
    shadow_strength: darkness around shapes.
    confines_later_layers: whether later layers may be confined to the shapes of this layer.
    is_confined: whether this layer is confined.
  """

  cells_across: Array
  rotation: Array
  shift: Array
  stretch: Array
  grid_distortion: Array
  hash_salt: Array
  density: Array
  jitter: Array
  max_radius: Array
  size_variation: Array
  elongation: Array
  shape_rotation: Array
  norm_weights: Array
  lobe_depths: Array
  outline_width: Array
  uses_strokes: Array
  stroke_ends: Array
  stroke_half_width: Array
  edge_softness: Array
  opacity: Array
  color: Array
  tone_variation: Array
  hue_variation: Array
  noise_amplitude: Array
  noise_index: Array
  wave_amplitude: Array
  wave_frequency: Array
  wave_hardness: Array
  wave_distortion: Array
  wave_follows_shape: Array
  has_rings: Array
  relief_height: Array
  bevel_width: Array
  roughness: Array
  shadow_strength: Array
  confines_later_layers: Array
  is_confined: Array


class Canvas(NamedTuple):
  """Canvas with linear colors, heights in pixels, and the mask that confines later layers."""

  color: Float[Array, 's s 3']
  height: Plane
  allowed_mask: Plane


def draw_layer(canvas: Canvas, layer: Layer, noise: Float[Array, 'f s s']) -> Canvas:
  """Draw a layer on top of the canvas."""
  canvas_size = canvas.height.shape[0]
  noise_field = noise[layer.noise_index]
  grid_x, grid_y = _grid_coordinates(layer, canvas_size, noise)
  column, row = jnp.floor(grid_x), jnp.floor(grid_y)
  random_values = _hash_cells(column, row, layer.hash_salt)
  x, y = grid_x - column - 0.5, grid_y - row - 0.5
  x, y = x - layer.jitter * (random_values[0] - 0.5), y - layer.jitter * (random_values[1] - 0.5)
  radius = layer.max_radius * (1 - layer.size_variation * random_values[2])
  # The half-angle tangent avoids a sine for every pixel.
  t = layer.shape_rotation * (2 * random_values[3] - 1)
  cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
  x, y = (cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius * layer.elongation
  shape_distance = _shape_distance(layer, x, y)
  distance = jnp.where(layer.uses_strokes > 0, _stroke_distance(layer, x, y), shape_distance)
  # A cell has canvas_size / cells_across pixels; `distance` is in radii.
  pixel_distance = distance * radius * canvas_size / layer.cells_across
  allowed_mask = jnp.where(layer.is_confined > 0, canvas.allowed_mask, 1.0)
  presence = jnp.where(random_values[4] < layer.density, allowed_mask, 0.0)
  coverage = jnp.clip(0.5 - pixel_distance / layer.edge_softness, 0, 1) * presence
  wave_x = jnp.where(layer.has_rings, jnp.sqrt(x * x + y * y + 1e-6), x)
  wave_pattern = _wave_pattern(
    layer,
    noise_field,
    jnp.where(layer.wave_follows_shape, wave_x, grid_x),
    jnp.where(layer.wave_follows_shape, y, grid_y),
  )
  brightness = (
    layer.tone_variation * (2 * random_values[5] - 1)
    + layer.noise_amplitude * noise_field
    + layer.wave_amplitude * wave_pattern
  )
  tint = jnp.stack([random_values[6], random_values[7], random_values[1]], -1) - 0.5
  fill_color = layer.color[None, None] + brightness[..., None] + layer.hue_variation * tint
  shadow = (
    layer.shadow_strength
    * presence
    * jnp.exp(-jnp.maximum(pixel_distance, 0) * (layer.cells_across / canvas_size * 12))
  )
  alpha = (coverage * layer.opacity)[..., None]
  color = (canvas.color * (1 - shadow[..., None])) * (1 - alpha) + fill_color * alpha
  edge_profile = jnp.clip(-distance / layer.bevel_width, 0, 1)
  relief = (
    jnp.sqrt(edge_profile * (2 - edge_profile))
    * layer.relief_height
    * radius
    * canvas_size
    / layer.cells_across
  )
  height = canvas.height + coverage * (
    relief
    + layer.roughness * (noise_field * layer.noise_amplitude + wave_pattern * layer.wave_amplitude)
  )
  new_allowed_mask = jnp.where(layer.confines_later_layers > 0, coverage, canvas.allowed_mask)
  return Canvas(color, height, new_allowed_mask)


def _grid_coordinates(
  layer: Layer, canvas_size: int, noise: Float[Array, 'f s s']
) -> tuple[Plane, Plane]:
  """Return x and y of every pixel in cells."""
  pixel_centers = (jnp.arange(canvas_size, dtype=jnp.float32) + 0.5) / canvas_size - 0.5
  x, y = pixel_centers[None, :], pixel_centers[:, None]
  cosine, sine = jnp.cos(layer.rotation), jnp.sin(layer.rotation)
  grid_x = (
    layer.cells_across * (cosine * x + sine * y) + layer.shift[0] + layer.grid_distortion * noise[0]
  )
  grid_y = layer.cells_across * layer.stretch * (cosine * y - sine * x) + layer.shift[1]
  return grid_x, grid_y + layer.grid_distortion * noise[1]


def _hash_cells(column: Plane, row: Plane, salt: UInt32[Array, '']) -> list[Plane]:
  """Return eight pseudo-random numbers in [0, 1) for the cell of every pixel."""
  hash_bits = column.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
  hash_bits += row.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B) + salt
  values = []
  for _ in range(2):
    hash_bits = (hash_bits ^ (hash_bits >> jnp.uint32(15))) * jnp.uint32(0x2C1B3C6D)
    hash_bits = (hash_bits ^ (hash_bits >> jnp.uint32(12))) * jnp.uint32(0x297A2D39)
    hash_bits = hash_bits ^ (hash_bits >> jnp.uint32(15))
    values += [
      ((hash_bits >> jnp.uint32(k)) & jnp.uint32(255)).astype(jnp.float32) for k in (0, 8, 16, 24)
    ]
  return [x / 256 for x in values]


def _shape_distance(layer: Layer, x: Plane, y: Plane) -> Plane:
  """Return the distance to a shape of radius one; it is negative inside."""
  ax, ay = jnp.abs(x), jnp.abs(y)
  r = jnp.sqrt(x * x + y * y + 1e-6)
  norm = (
    layer.norm_weights[0] * r
    + layer.norm_weights[1] * jnp.maximum(ax, ay)
    + layer.norm_weights[2] * (ax + ay)
  )
  cosine = x / r
  # Lobes use the cosines of three and six times the angle.
  triple_angle_cosine = cosine * (4 * cosine * cosine - 3)
  distance = (
    norm
    - 1
    + layer.lobe_depths[0] * triple_angle_cosine
    + layer.lobe_depths[1] * (2 * triple_angle_cosine * triple_angle_cosine - 1)
  )
  return jnp.where(
    layer.outline_width > 0, jnp.abs(distance + layer.outline_width) - layer.outline_width, distance
  )


def _stroke_distance(layer: Layer, x: Plane, y: Plane) -> Plane:
  """Return the distance to a bent line of three strokes; it is negative inside."""
  y = y / layer.elongation  # Strokes are thin already.
  min_squared_distance = jnp.full_like(x, 1e3)
  for i in range(3):
    (ax, ay), (bx, by) = layer.stroke_ends[i], layer.stroke_ends[i + 1]
    dx, dy = bx - ax, by - ay
    segment_position = jnp.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-3), 0, 1)
    bend_offset = 2 * layer.lobe_depths[0] * segment_position * (1 - segment_position)
    ex, ey = (
      x - ax - segment_position * dx - bend_offset * dy,
      y - ay - segment_position * dy + bend_offset * dx,
    )
    min_squared_distance = jnp.minimum(min_squared_distance, ex * ex + ey * ey)
  return jnp.sqrt(min_squared_distance + 1e-6) - layer.stroke_half_width


def _wave_pattern(layer: Layer, noise_field: Plane, x: Plane, y: Plane) -> Plane:
  """Return stripes distorted by noise; a second direction turns them into a weave."""
  phase = layer.wave_distortion * noise_field
  first_wave = jnp.sin(layer.wave_frequency[0] * x + layer.wave_frequency[1] * y + phase)
  second_wave = jnp.where(
    layer.wave_frequency[2] > 0, jnp.sin(layer.wave_frequency[2] * y + phase), 1.0
  )
  return jnp.clip(first_wave * second_wave * layer.wave_hardness, -1, 1)
