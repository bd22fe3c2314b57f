"""Pictures out of nothing: noise, layers of shapes, and light. No photograph is involved.

Letters: n pictures, s their side, f fields of noise, l layers.
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


@functools.partial(jax.jit, static_argnames=('count', 'side', 'at_once'))
def paint(key: Key, count: int, side: int = SIDE, at_once: int = 1) -> Float[Array, 'n s s 3']:
  """Paint pictures of linear colors, mostly on [0, 1]; `at_once` on a device."""
  keys = jax.random.split(key, count)
  one = functools.partial(_picture, side=side)
  return jax.lax.map(one, keys, batch_size=at_once if at_once > 1 else None)


def _picture(key: Key, side: int) -> Float[Array, 's s 3']:
  key, *keys = jax.random.split(key, 5)
  noise = fields(keys[0], side)
  layers = _layers(keys[1])
  ground = _ground(keys[2], noise)
  start = shapes.Canvas(ground, jnp.zeros((side, side)), jnp.ones((side, side)))

  def add(canvas: shapes.Canvas, layer: shapes.Layer) -> tuple[shapes.Canvas, None]:
    # One by one, pictures do without layers that hold nothing.
    drawn = jax.lax.cond(
      layer.density > 0, lambda: shapes.draw(canvas, layer, noise), lambda: canvas
    )
    return drawn, None

  drawn, _ = jax.lax.scan(add, start, layers)
  return _light(keys[3], drawn, noise[2])


def fields(key: Key, side: int) -> Float[Array, 'f s s']:
  """Noise with spectra 1/f^a of unit variance, some stretched, some folded into veins or stains."""
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


def _layers(key: Key) -> shapes.Layer:
  """Draw the numbers of all layers, from coarse to fine but for some disorder."""
  key, layers, salt = jax.random.split(key, 3)
  # All at once: each draw of its own would take long to compile.
  columns = iter(jax.random.uniform(layers, (128, _LAYERS)))
  shared = jax.random.uniform(key, (6,))
  one_object = shared[0] < 0.4  # Before a ground.

  def u(low: float, high: float, *shape: int) -> Array:
    drawn = jnp.stack([next(columns) for _ in range(math.prod(shape))], axis=-1)
    return low + (high - low) * drawn.reshape(_LAYERS, *shape)

  def chance(p: float | Array) -> Array:
    return u(0, 1) < p

  def either(p: float, one: Array, other: Array | float) -> Array:
    return jnp.where(chance(p), one, other)

  order = jnp.arange(_LAYERS, dtype=jnp.float32) / (_LAYERS - 1)
  cells = jnp.exp2(0.2 + 4.6 * jnp.clip(order + u(-0.25, 0.25), 0, 1))
  regular = chance(0.3)
  object_ = one_object & (jnp.arange(_LAYERS) == 2)
  gray = shared[1] < 0.3
  chroma = jnp.where(gray, 0.0, shared[2])
  angles = shared[3:5] * math.pi  # Shared: a picture has few directions.
  turn = jnp.where(chance(0.4), angles[0], jnp.where(chance(0.5), angles[1], 0.0))
  norms = jax.nn.softmax(6 * u(0, 1, 3), axis=-1)
  frequency = jnp.stack([jnp.exp(u(1.0, 4.0)), either(0.5, u(-20, 20), 0.0)], axis=-1)
  frequency = jnp.where(chance(0.5)[:, None], frequency, frequency[:, ::-1])
  frequency = jnp.concatenate([frequency, either(0.25, jnp.exp(u(1.5, 4.0)), 0.0)[:, None]], axis=1)
  plain = jnp.where(object_, 1.0, 0.0)
  rings = chance(0.25)
  # Before an object the ground stays plain in many pictures, and what comes later is on the object.
  before = one_object & (jnp.arange(_LAYERS) < 2)
  density = jnp.where(regular, either(0.3, u(0.3, 1), 1.0), u(0.1, 0.9))
  density = jnp.where(before & chance(0.7), 0.0, density)
  # Some pictures are crowded, some nearly empty; fine layers are many shapes each.
  crowd = 0.1 + 0.8 * shared[5]
  density = jnp.where(chance(crowd * (1 - 0.5 * order)), density, 0.0)
  level = u(0.0, 1.0) ** 1.3
  return shapes.Layer(
    cells=jnp.where(object_, u(0.75, 1.3), cells),
    turn=turn,
    shift=jnp.where(object_[:, None], 0.5 + u(-0.1, 0.1, 2), u(0, 1, 2)),
    stretch=jnp.where(object_, 1.0, jnp.exp(either(0.5, u(-1.2, 1.2), 0.0))),
    bend=either(0.3, u(0.0, 0.25), 0.0) * jnp.where(object_, 0.3, 1.0),
    salt=jax.random.bits(salt, (_LAYERS,), jnp.uint32),
    density=jnp.where(object_, 1.0, density),
    jitter=jnp.where(regular | object_, 0.0, u(0.2, 0.9)),
    size=jnp.where(object_, u(0.3, 0.48), u(0.15, 0.55)),
    spread=jnp.where(regular | object_, 0.0, u(0.2, 0.8)),
    slim=jnp.exp(either(0.5, u(0.0, 2.2), u(0.0, 0.3))),
    turned=jnp.where(regular & chance(0.7), 0.0, u(0.0, 1.0)),
    norms=norms,
    lobes=u(-0.35, 0.35, 2) * either(0.35, jnp.ones(_LAYERS), 0.0)[:, None],
    ring=either(0.2, u(0.03, 0.25), 0.0),
    strokes=jnp.where(object_, 0.0, either(0.35, jnp.ones(_LAYERS), 0.0)),
    ends=u(-1.0, 1.0, 4, 2),
    width=jnp.exp(u(-3.5, -1.2)),
    soft=jnp.exp(either(0.2, u(0.0, 2.5), u(0.0, 0.4))),
    opacity=either(0.25, u(0.2, 0.9), 1.0),
    color=level[:, None] * (1 + chroma * 0.9 * u(-1, 1, 3) * u(0, 1)[:, None]),
    tone=u(0, 1) ** 2 * 0.4,
    hue=chroma * u(0, 1) ** 2 * 0.6,
    grain=jnp.exp(u(-5.0, -1.6)),
    field=u(0, _FIELDS).astype(jnp.int32),
    wave=jnp.where(chance(jnp.where(object_, 0.6, 0.3)), jnp.exp(u(-4.0, -1.2)), 0.0),
    frequency=frequency * jnp.where(rings[:, None], jnp.array([[1.0, 0.0, 0.0]]), 1.0),
    hardness=either(0.3, u(1.0, 8.0), 1.0),
    wobble=either(0.4, u(0.0, 4.0), 0.0),
    local=chance(0.5) | rings,
    rings=rings,
    bump=jnp.maximum(either(0.5, u(0.05, 0.9), 0.0), plain * u(-0.2, 1.0)),
    bevel=either(0.5, u(0.05, 0.3), 1.0),
    rough=either(0.5, jnp.exp(u(0.0, 3.5)), 0.0) * jnp.where(object_, 2.0, 1.0),
    shadow=either(0.4, u(0.1, 0.8), 0.0),
    holds=plain,
    confined=jnp.where(one_object & (jnp.arange(_LAYERS) > 2) & chance(0.85), 1.0, 0.0),
  )


def _ground(key: Key, noise: Float[Array, 'f s s']) -> Float[Array, 's s 3']:
  """A color with noise, more in its brightness than in its hue, from none to a cloudscape."""
  keys = jax.random.split(key, 4)
  level = jax.random.uniform(keys[0])
  color = level * (1 + 0.25 * jax.random.normal(keys[1], (3,)))
  amount = jnp.exp(jax.random.uniform(keys[2], minval=-5.5, maxval=-1.2))
  mixing = amount * (
    jnp.eye(3)[:, :1] @ jnp.ones((1, 3)) + 0.15 * jax.random.normal(keys[3], (3, 3))
  )
  return color[None, None] + jnp.einsum('fhw,fc->hwc', noise[2:5], mixing)


def _light(key: Key, drawn: shapes.Canvas, field: shapes.Plane) -> Float[Array, 's s 3']:
  """Light from one side: shading and gloss by the slope of the heights, and an uneven lamp."""
  keys = jax.random.split(key, 4)
  angle = jax.random.uniform(keys[0]) * (2 * math.pi)
  tilt = jax.random.uniform(keys[1], minval=0.2, maxval=1.2)
  gloss, strength, lamp = jax.random.uniform(keys[2], (3,))
  dy = (jnp.roll(drawn.height, -1, 0) - jnp.roll(drawn.height, 1, 0)) / 2
  dx = (jnp.roll(drawn.height, -1, 1) - jnp.roll(drawn.height, 1, 1)) / 2
  lx, ly, lz = jnp.sin(tilt) * jnp.cos(angle), jnp.sin(tilt) * jnp.sin(angle), jnp.cos(tilt)
  normal = jax.lax.rsqrt(1 + dx * dx + dy * dy)
  facing = jnp.maximum((lz - lx * dx - ly * dy) * normal, 0.0)
  shading = 1 + strength * (facing / lz - 1)
  # Halfway between the lamp and a viewer above.
  hz = jnp.sqrt((1 + lz) / 2)
  mirrored = jnp.clip((hz - (lx * dx + ly * dy) / (2 * hz)) * normal, 0, 1)
  power = jnp.exp2(1 + 6 * jax.random.uniform(keys[3]))
  shine = jnp.where(gloss > 0.5, 2 * (gloss - 0.5), 0.0) * mirrored**power
  flat = jnp.clip(hz, 0, 1) ** power  # A level surface should not glare.
  shine = jnp.maximum(shine - 0.7 * jnp.where(gloss > 0.5, 2 * (gloss - 0.5), 0.0) * flat, 0.0)
  light = jnp.clip(shading, 0.0, 2.5) * (1 + 0.12 * lamp * field)
  return jnp.maximum(drawn.color, 0.0) * light[..., None] + shine[..., None]
