// Marching squares: a cell's corners that are inside, clockwise from top left as bits, tell which
// of its edges (top, right, bottom, left) a line joins; what is inside lies to its left.
const JOINS = ['', 'LT', 'TR', 'LR', 'RB', 'LTRB', 'TB', 'LB', 'BL', 'BT', 'TRBL', 'BR', 'RL', 'RT',
  'TL', ''];

// Closed outlines of what exceeds a level, as a path over the unit square.
export function contour({ gray, width, height }, level) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? -1 : gray[y * width + x]);
  const next = new Map();
  const points = new Map();
  for (let y = -1; y < height; y++) {
    let [a, d] = [at(-1, y) > level, at(-1, y + 1) > level];
    for (let x = -1; x < width; x++) {
      const [b, c] = [at(x + 1, y) > level, at(x + 1, y + 1) > level];
      const joins = JOINS[a + 2 * b + 4 * c + 8 * d];
      [a, d] = [b, c];
      if (!joins) continue;
      const edge = (side) => {
        const [ex, ey] = [x + (side === 'R'), y + (side === 'B')];
        const upright = side === 'L' || side === 'R';
        const key = 2 * ((ey + 1) * (width + 2) + ex + 1) + upright;
        const [from, to] = upright ? [at(ex, ey), at(ex, ey + 1)] : [at(ex, ey), at(ex + 1, ey)];
        const along = (level - from) / (to - from) + 0.5;
        const [px, py] = upright ? [0.5, along] : [along, 0.5];
        points.set(key, [(ex + px) / width, (ey + py) / height]);
        return key;
      };
      for (let i = 0; i < joins.length; i += 2) next.set(edge(joins[i]), edge(joins[i + 1]));
    }
  }
  const path = new Path2D();
  while (next.size) {
    const [first] = next.keys();
    path.moveTo(...points.get(first));
    for (let key = first; next.has(key);) {
      const before = key;
      key = next.get(key);
      next.delete(before);
      path.lineTo(...points.get(key));
    }
    path.closePath();
  }
  return path;
}
