"""Synthetic images made of noise, layers of shapes, and light. No photograph is involved.

Letters: n images, s image width, f noise fields, l layers.
"""

import functools
import math

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distill import shapes

SIDE = 256
_LAYERS = 10
_FIELDS = 5

Key = jax.Array


@functools.partial(jax.jit, static_argnames=('num_images', 'side', 'batch_size'))
def generate(
  key: Key, num_images: int, side: int = SIDE, batch_size: int = 1
) -> Float[Array, 'n s s 3']:
  """Generate images with linear colors, mostly in [0, 1], `batch_size` at a time on a device."""
  keys = jax.random.split(key, num_images)
  generate_image = functools.partial(_generate_image, side=side)
  return jax.lax.map(generate_image, keys, batch_size=batch_size if batch_size > 1 else None)


def _generate_image(key: Key, side: int) -> Float[Array, 's s 3']:
  key, *keys = jax.random.split(key, 5)
  noise = noise_fields(keys[0], side)
  layers = _random_layers(keys[1])
  background = _random_background(keys[2], noise)
  initial_canvas = shapes.Canvas(background, jnp.zeros((side, side)), jnp.ones((side, side)))

  def draw_layer(canvas: shapes.Canvas, layer: shapes.Layer) -> tuple[shapes.Canvas, None]:
    # With batch_size=1, empty layers are skipped.
    new_canvas = jax.lax.cond(
      layer.density > 0, lambda: shapes.draw_layer(canvas, layer, noise), lambda: canvas
    )
    return new_canvas, None

  final_canvas, _ = jax.lax.scan(draw_layer, initial_canvas, layers)
  return _apply_lighting(keys[3], final_canvas, noise[2])


def noise_fields(key: Key, side: int) -> Float[Array, 'f s s']:
  """Return noise of unit variance with 1/f^a spectra.

  Some fields are stretched, and some are shaped into veins or stains.
  """
  keys = jax.random.split(key, 5)
  power = jax.random.uniform(keys[0], (_FIELDS, 1, 1), minval=0.4, maxval=2.4)
  stretch = jnp.exp(1.2 * jax.random.normal(keys[1], (_FIELDS, 1, 1)))
  stretch = jnp.where(jax.random.uniform(keys[2], (_FIELDS, 1, 1)) < 0.6, 1.0, stretch)
  y = jnp.fft.fftfreq(side).astype(jnp.float32)[None, :, None] * side
  x = jnp.fft.rfftfreq(side).astype(jnp.float32)[None, None, :] * side
  frequency = jnp.sqrt((y * stretch) ** 2 + (x / stretch) ** 2 + 1.0)
  phase = jax.random.uniform(keys[3], frequency.shape) * (2 * math.pi)
  spectrum = jnp.where(x + jnp.abs(y) > 0, frequency**-power, 0.0)
  plane = jnp.fft.irfft2(
    jax.lax.complex(spectrum * jnp.cos(phase), spectrum * jnp.sin(phase)), (side, side)
  )
  plane = plane / (plane.std(axis=(1, 2), keepdims=True) + 1e-6)
  kind = jax.random.uniform(keys[4], (_FIELDS, 1, 1))
  veins, stains = 1.2 - 1.6 * jnp.abs(plane), jnp.clip(4 * plane - 2, -0.5, 2.5)
  return jnp.where(kind < 0.7, plane, jnp.where(kind < 0.85, veins, stains))


def _random_layers(key: Key) -> shapes.Layer:
  """Draw the parameters of all layers, from coarse to fine with some disorder."""
  key, layers_key, salt_key = jax.random.split(key, 3)
  # All numbers are drawn at once: separate draws would take long to compile.
  draws = iter(jax.random.uniform(layers_key, (128, _LAYERS)))
  shared = jax.random.uniform(key, (6,))
  has_single_object = shared[0] < 0.4  # An object in front of a background.

  def u(low: float, high: float, *shape: int) -> Array:
    samples = jnp.stack([next(draws) for _ in range(math.prod(shape))], axis=-1)
    return low + (high - low) * samples.reshape(_LAYERS, *shape)

  def chance(p: float | Array) -> Array:
    return u(0, 1) < p

  def choose(p: float, first: Array, second: Array | float) -> Array:
    return jnp.where(chance(p), first, second)

  fineness = jnp.arange(_LAYERS, dtype=jnp.float32) / (_LAYERS - 1)
  cells_across = jnp.exp2(0.2 + 4.6 * jnp.clip(fineness + u(-0.25, 0.25), 0, 1))
  is_regular = chance(0.3)
  is_object = has_single_object & (jnp.arange(_LAYERS) == 2)
  is_gray = shared[1] < 0.3
  chroma = jnp.where(is_gray, 0.0, shared[2])
  shared_angles = shared[3:5] * math.pi  # Shared because an image has few directions.
  rotation = jnp.where(chance(0.4), shared_angles[0], jnp.where(chance(0.5), shared_angles[1], 0.0))
  norm_weights = jax.nn.softmax(6 * u(0, 1, 3), axis=-1)
  wave_frequency = jnp.stack([jnp.exp(u(1.0, 4.0)), choose(0.5, u(-20, 20), 0.0)], axis=-1)
  wave_frequency = jnp.where(chance(0.5)[:, None], wave_frequency, wave_frequency[:, ::-1])
  wave_frequency = jnp.concatenate(
    [wave_frequency, choose(0.25, jnp.exp(u(1.5, 4.0)), 0.0)[:, None]], axis=1
  )
  object_mask = jnp.where(is_object, 1.0, 0.0)
  has_rings = chance(0.25)
  # Behind an object the background is often plain, and later layers are on the object.
  is_before_object = has_single_object & (jnp.arange(_LAYERS) < 2)
  density = jnp.where(is_regular, choose(0.3, u(0.3, 1), 1.0), u(0.1, 0.9))
  density = jnp.where(is_before_object & chance(0.7), 0.0, density)
  # Some images are crowded, some nearly empty. Fine layers have many shapes each.
  fill_rate = 0.1 + 0.8 * shared[5]
  density = jnp.where(chance(fill_rate * (1 - 0.5 * fineness)), density, 0.0)
  brightness = u(0.0, 1.0) ** 1.3
  return shapes.Layer(
    cells_across=jnp.where(is_object, u(0.75, 1.3), cells_across),
    rotation=rotation,
    shift=jnp.where(is_object[:, None], 0.5 + u(-0.1, 0.1, 2), u(0, 1, 2)),
    stretch=jnp.where(is_object, 1.0, jnp.exp(choose(0.5, u(-1.2, 1.2), 0.0))),
    grid_distortion=choose(0.3, u(0.0, 0.25), 0.0) * jnp.where(is_object, 0.3, 1.0),
    hash_salt=jax.random.bits(salt_key, (_LAYERS,), jnp.uint32),
    density=jnp.where(is_object, 1.0, density),
    jitter=jnp.where(is_regular | is_object, 0.0, u(0.2, 0.9)),
    max_radius=jnp.where(is_object, u(0.3, 0.48), u(0.15, 0.55)),
    size_variation=jnp.where(is_regular | is_object, 0.0, u(0.2, 0.8)),
    elongation=jnp.exp(choose(0.5, u(0.0, 2.2), u(0.0, 0.3))),
    shape_rotation=jnp.where(is_regular & chance(0.7), 0.0, u(0.0, 1.0)),
    norm_weights=norm_weights,
    lobe_depths=u(-0.35, 0.35, 2) * choose(0.35, jnp.ones(_LAYERS), 0.0)[:, None],
    outline_width=choose(0.2, u(0.03, 0.25), 0.0),
    uses_strokes=jnp.where(is_object, 0.0, choose(0.35, jnp.ones(_LAYERS), 0.0)),
    stroke_ends=u(-1.0, 1.0, 4, 2),
    stroke_half_width=jnp.exp(u(-3.5, -1.2)),
    edge_softness=jnp.exp(choose(0.2, u(0.0, 2.5), u(0.0, 0.4))),
    opacity=choose(0.25, u(0.2, 0.9), 1.0),
    color=brightness[:, None] * (1 + chroma * 0.9 * u(-1, 1, 3) * u(0, 1)[:, None]),
    tone_variation=u(0, 1) ** 2 * 0.4,
    hue_variation=chroma * u(0, 1) ** 2 * 0.6,
    noise_amplitude=jnp.exp(u(-5.0, -1.6)),
    noise_index=u(0, _FIELDS).astype(jnp.int32),
    wave_amplitude=jnp.where(chance(jnp.where(is_object, 0.6, 0.3)), jnp.exp(u(-4.0, -1.2)), 0.0),
    wave_frequency=wave_frequency
    * jnp.where(has_rings[:, None], jnp.array([[1.0, 0.0, 0.0]]), 1.0),
    wave_hardness=choose(0.3, u(1.0, 8.0), 1.0),
    wave_distortion=choose(0.4, u(0.0, 4.0), 0.0),
    wave_follows_shape=chance(0.5) | has_rings,
    has_rings=has_rings,
    relief_height=jnp.maximum(choose(0.5, u(0.05, 0.9), 0.0), object_mask * u(-0.2, 1.0)),
    bevel_width=choose(0.5, u(0.05, 0.3), 1.0),
    roughness=choose(0.5, jnp.exp(u(0.0, 3.5)), 0.0) * jnp.where(is_object, 2.0, 1.0),
    shadow_strength=choose(0.4, u(0.1, 0.8), 0.0),
    confines_later_layers=object_mask,
    is_confined=jnp.where(has_single_object & (jnp.arange(_LAYERS) > 2) & chance(0.85), 1.0, 0.0),
  )


def _random_background(key: Key, noise: Float[Array, 'f s s']) -> Float[Array, 's s 3']:
  """Return a color with noise, none to cloud-like, more in its brightness than in its hue."""
  keys = jax.random.split(key, 4)
  brightness = jax.random.uniform(keys[0])
  color = brightness * (1 + 0.25 * jax.random.normal(keys[1], (3,)))
  amplitude = jnp.exp(jax.random.uniform(keys[2], minval=-5.5, maxval=-1.2))
  mixing_matrix = amplitude * (
    jnp.eye(3)[:, :1] @ jnp.ones((1, 3)) + 0.15 * jax.random.normal(keys[3], (3, 3))
  )
  return color[None, None] + jnp.einsum('fhw,fc->hwc', noise[2:5], mixing_matrix)


def _apply_lighting(
  key: Key, canvas: shapes.Canvas, noise_field: shapes.Plane
) -> Float[Array, 's s 3']:
  """Light the canvas from one side: shading and gloss by the slope, and an uneven lamp."""
  keys = jax.random.split(key, 4)
  angle = jax.random.uniform(keys[0]) * (2 * math.pi)
  tilt = jax.random.uniform(keys[1], minval=0.2, maxval=1.2)
  gloss, strength, lamp_unevenness = jax.random.uniform(keys[2], (3,))
  dy = (jnp.roll(canvas.height, -1, 0) - jnp.roll(canvas.height, 1, 0)) / 2
  dx = (jnp.roll(canvas.height, -1, 1) - jnp.roll(canvas.height, 1, 1)) / 2
  lx, ly, lz = jnp.sin(tilt) * jnp.cos(angle), jnp.sin(tilt) * jnp.sin(angle), jnp.cos(tilt)
  normal_z = jax.lax.rsqrt(1 + dx * dx + dy * dy)
  diffuse = jnp.maximum((lz - lx * dx - ly * dy) * normal_z, 0.0)
  shading = 1 + strength * (diffuse / lz - 1)
  # The half vector lies between the lamp and a viewer above.
  hz = jnp.sqrt((1 + lz) / 2)
  specular = jnp.clip((hz - (lx * dx + ly * dy) / (2 * hz)) * normal_z, 0, 1)
  power = jnp.exp2(1 + 6 * jax.random.uniform(keys[3]))
  highlight = jnp.where(gloss > 0.5, 2 * (gloss - 0.5), 0.0) * specular**power
  flat_specular = jnp.clip(hz, 0, 1) ** power  # A level surface should not glare.
  highlight = jnp.maximum(
    highlight - 0.7 * jnp.where(gloss > 0.5, 2 * (gloss - 0.5), 0.0) * flat_specular, 0.0
  )
  light = jnp.clip(shading, 0.0, 2.5) * (1 + 0.12 * lamp_unevenness * noise_field)
  return jnp.maximum(canvas.color, 0.0) * light[..., None] + highlight[..., None]
