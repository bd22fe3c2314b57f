"""Overlapping elements of a page, for the tests of the report and of the service's page."""

COLLISIONS = """(groups) => {
  const problems = [];
  for (const group of groups) {
    const boxes = [...document.querySelectorAll(group)].filter((e) => e.checkVisibility()
      && !e.matches('.skip, .visually-hidden, dialog, main, header')
      && e.getBoundingClientRect().width > 0);
    boxes.forEach((a, i) => {
      const p = a.getBoundingClientRect();
      if (p.left < -1 || p.right > innerWidth + 1) problems.push(`${a.outerHTML} sticks out`);
      for (const b of boxes.slice(i + 1)) {
        if (a.contains(b) || b.contains(a)) continue;
        const q = b.getBoundingClientRect();
        const [w, h] = [Math.min(p.right, q.right) - Math.max(p.left, q.left),
          Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)];
        if (w > 1.5 && h > 1.5) problems.push(`${group}: ${a.textContent} | ${b.textContent}`);
      }
    });
  }
  return problems;
}"""


def collisions(page, groups):
  """Return the elements of each group, a selector, that overlap each other or stick out."""
  return page.evaluate(COLLISIONS, groups)
