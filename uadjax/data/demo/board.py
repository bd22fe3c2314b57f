"""Demo category 'board': a small circuit board from above.

Letters: s side of an image; r rows of pins; n pins of a row.
"""

import functools

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import artwork, components, defects, noise, scene
from uadjax.data.demo.scene import Surface, SurfaceFn, View

_LACQUER, _LACQUER_OVER_COPPER = np.array([0.010, 0.075, 0.030]), np.array([0.022, 0.155, 0.058])
_COPPER = np.array([0.52, 0.30, 0.14])
# Indices of components. Circuits are not removable, because their laser marks would remain.
_REMOVABLE_COMPONENTS = [
  index for index, component in enumerate(components.COMPONENTS) if component.kind != 'circuit'
]
_SMALL_COMPONENTS = [
  index
  for index, component in enumerate(components.COMPONENTS)
  if component.kind in ('resistor', 'ceramic')
]
# Half the length of the longest row of pins, and its number of pins.
_HALF_ROW_LENGTH, _MAX_PINS = 0.13, 6


def make_surface(
  rng: np.random.Generator,
  view: View,
  missing_component: int | None = None,
  tip_offsets: Float[np.ndarray, 'r n'] | None = None,
  rotated_component: tuple[int, float] | None = None,
) -> Surface:
  """Draw a circuit board.

  Args:
    rng: random generator for the variation between good boards.
    view: view of the camera.
    missing_component: index of a component to omit.
    tip_offsets: sideways offsets of the tips of pins, in pitches, by row and pin.
    rotated_component: index of a component, and the angle by which it is rotated.
  """
  view = _place_board(rng, view)
  board_artwork = artwork.sample_artwork(view.y, view.x)
  board = _draw_laminate(rng, view, board_artwork)
  noise_planes = (
    noise.octaves(rng, view.size, 12, 90, fade=0.5),
    noise.octaves(rng, view.size, 20, 300, fade=0.3),
  )
  zero_offsets = np.zeros((len(components.PIN_ROWS), _MAX_PINS))
  for pin_row, row_offsets in zip(
    components.PIN_ROWS, zero_offsets if tip_offsets is None else tip_offsets, strict=True
  ):
    components.draw_pins(
      components.cut_window(
        board, view, noise_planes, (pin_row.y, pin_row.x, 0.0), _HALF_ROW_LENGTH
      ),
      pin_row,
      row_offsets,
    )
  for component_index, component in enumerate(components.COMPONENTS):
    half_size = max(component.half_height, component.half_width)
    # Tolerances of a machine that places components.
    shift, rotation = rng.normal(0, 0.0012, 2), rng.normal(0, 0.0006 / half_size)
    if component.kind != 'circuit':
      components.draw_pads(
        components.cut_window(
          board, view, noise_planes, (component.y, component.x, 0.0), 1.2 * half_size
        ),
        component,
      )
    if component_index != missing_component:
      angle = (
        rotated_component[1]
        if rotated_component and component_index == rotated_component[0]
        else rotation
      )
      pose = (component.y + shift[0], component.x + shift[1], angle)
      components.draw_body(
        components.cut_window(board, view, noise_planes, pose, half_size), component
      )
  laser_marks = (
    0.11
    * noise.linear_step(board_artwork.laser, view.pixel_size)
    * (1 + 0.2 * noise_planes[0]).clip(0)
  )
  return board._replace(color=board.color + laser_marks[..., None])


def _place_board(rng: np.random.Generator, view: View) -> View:
  """Shift and rotate the view a little, because boards never lie quite straight."""
  angle, (dy, dx) = rng.normal(0, 0.007), rng.normal(0, 0.004, 2)
  y, x = view.y - 0.5, view.x - 0.5
  return view._replace(
    y=0.5 + y * np.cos(angle) - x * np.sin(angle) + dy,
    x=0.5 + y * np.sin(angle) + x * np.cos(angle) + dx,
  )


def _draw_laminate(rng: np.random.Generator, view: View, board_artwork: artwork.Artwork) -> Surface:
  """Draw the empty board: green lacquer over glass cloth and copper, printed and drilled."""
  size = view.size
  weave = np.sin(2 * np.pi * 46 * view.x) * np.sin(2 * np.pi * 46 * view.y)
  cloud, grain = noise.octaves(rng, size, 2, 30), noise.octaves(rng, size, 30, 300, fade=0.2)
  trace_coverage = noise.smoothstep((board_artwork.trace + 0.004) / 0.008)
  lacquer = _LACQUER + trace_coverage[..., None] * (_LACQUER_OVER_COPPER - _LACQUER)
  shading = rng.normal(1, 0.04) * (1 + 0.05 * cloud + 0.03 * weave + 0.02 * grain)
  height = 0.0015 * trace_coverage + 0.00006 * weave + 0.00002 * grain
  ones = np.ones_like(height)
  board = Surface(height, (lacquer * shading[..., None]).clip(0), 0.05 * ones, 40, ones)
  window = components.cut_window(board, view, (grain, grain), (0.5, 0.5, 0.0), 1.0)
  window.paint(board_artwork.silk, 0.56 + 0.05 * (grain - cloud)[..., None], 0.02, height + 0.0006)
  window.paint(board_artwork.ring, _COPPER * (1 + 0.08 * grain[..., None]), 0.25, 0.0022)
  window.paint(board_artwork.drill, np.full(3, 0.004), 0.0, -0.004)
  return board


def _omit_component(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Omit a component."""
  return make_surface(scene_rng, view, missing_component=int(rng.choice(_REMOVABLE_COMPONENTS)))


def _deform_component(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Bend neighboring pins, or rotate a component."""
  if rng.random() < 0.4:
    angle = rng.choice([-1, 1]) * rng.uniform(0.15, 0.6)
    index = int(rng.choice(_SMALL_COMPONENTS))
    return make_surface(scene_rng, view, rotated_component=(index, float(angle)))
  tip_offsets = np.zeros((len(components.PIN_ROWS), _MAX_PINS))
  row_index, num_bent = int(rng.integers(len(components.PIN_ROWS))), int(rng.integers(1, 4))
  first_pin = int(rng.integers(components.PIN_ROWS[row_index].num_pins - num_bent + 1))
  tip_offsets[row_index, first_pin : first_pin + num_bent] = rng.choice([-1, 1]) * rng.uniform(
    0.22, 0.42, num_bent
  )
  return make_surface(scene_rng, view, tip_offsets=tip_offsets)


PRODUCT = scene.Product(
  make_surface,
  {
    'contamination': defects.add_contamination,
    'deformation': _deform_component,
    'missing': _omit_component,
    'scratch': functools.partial(defects.add_scratch, exposed_color=(0.60, 0.46, 0.28)),
    # The spot is flux that was not washed off, which is pale.
    'spot': functools.partial(
      defects.add_spot, transmission=(0.7,), deposit_color=(0.085, 0.088, 0.070)
    ),
  },
  lamp=(-0.8, -0.6, 1.3),
)
