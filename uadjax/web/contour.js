// Marching squares. The index into SEGMENTS has one bit per corner of a cell that lies inside,
// clockwise from the top left. Each pair of letters is a segment from one edge of the cell to
// another (Top, Right, Bottom, Left), with the inside on its left.
const SEGMENTS = ['', 'LT', 'TR', 'LR', 'RB', 'LTRB', 'TB', 'LB', 'BL', 'BT', 'TRBL', 'BR', 'RL',
  'RT', 'TL', ''];

// Returns closed outlines of the values above a level, as a path over the unit square.
export function contour({ values, width, height }, level) {
  const valueAt = (x, y) =>
    (x < 0 || y < 0 || x >= width || y >= height ? -Infinity : values[y * width + x]);
  const nextPoints = new Map();
  const points = new Map();
  for (let y = -1; y < height; y++) {
    let [a, d] = [valueAt(-1, y) > level, valueAt(-1, y + 1) > level];
    for (let x = -1; x < width; x++) {
      const [b, c] = [valueAt(x + 1, y) > level, valueAt(x + 1, y + 1) > level];
      const segments = SEGMENTS[a + 2 * b + 4 * c + 8 * d];
      [a, d] = [b, c];
      if (!segments) continue;
      const addPoint = (side) => {
        const [ex, ey] = [x + (side === 'R'), y + (side === 'B')];
        const isVertical = side === 'L' || side === 'R';
        const key = 2 * ((ey + 1) * (width + 2) + ex + 1) + isVertical;
        const [from, to] = [valueAt(ex, ey), valueAt(ex + !isVertical, ey + isVertical)];
        const isInside = Number.isFinite(from) && Number.isFinite(to);
        const offset = 0.5 + (isInside ? (level - from) / (to - from) : 0.5);
        const [px, py] = isVertical ? [0.5, offset] : [offset, 0.5];
        points.set(key, [(ex + px) / width, (ey + py) / height]);
        return key;
      };
      for (let i = 0; i < segments.length; i += 2) {
        nextPoints.set(addPoint(segments[i]), addPoint(segments[i + 1]));
      }
    }
  }
  const path = new Path2D();
  while (nextPoints.size) {
    const [first] = nextPoints.keys();
    path.moveTo(...points.get(first));
    for (let key = first; nextPoints.has(key);) {
      const previousKey = key;
      key = nextPoints.get(key);
      nextPoints.delete(previousKey);
      path.lineTo(...points.get(key));
    }
    path.closePath();
  }
  return path;
}
