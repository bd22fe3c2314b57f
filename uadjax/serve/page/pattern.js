// Names of parts from names of images, by the rules of `uadjax.inference.parts.part_of`.

// Returns a function from the name of an image to that of its part; '' if the name does not match.
// Throws an error if the pattern is not valid.
export function parsePattern(pattern) {
  const source = pattern.replaceAll('(?P<', '(?<');  // Python's groups.
  let groups;
  try {
    new RegExp(source);
    ({ groups } = new RegExp(`${source}|`).exec(''));
  } catch (error) {
    throw new Error(`This is not a regular expression: ${error.message}.`, { cause: error });
  }
  if (!groups || !('part' in groups)) {
    throw new Error('The pattern has no group (?P<part>…) for the part. An example: '
      + '(?P<part>.+)_cam\\d+');
  }
  const regex = new RegExp(`^(?:${source})$`);
  return (name) => {
    const names = name.replace(/(?<=[^/])\.[^./]+$/, '').split('/').filter(Boolean);
    const numEnds = pattern.includes('/') ? names.length : 1;
    for (let i = 1; i <= numEnds; i++) {
      const match = regex.exec(names.slice(-i).join('/'));
      if (match) return match.groups.part ?? '';
    }
    return '';
  };
}
