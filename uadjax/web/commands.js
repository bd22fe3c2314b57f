// Commands for a shell, to be copied.

export const quoteForShell = (text) =>
  (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// Options that are set together: labels depend on both thresholds of the score.
const THRESHOLD_OPTIONS = [
  { imageThreshold: '--image-threshold', reviewThreshold: '--review-threshold' },
  { pixelThreshold: '--pixel-threshold' },
];

// Returns the command that writes changed thresholds into a model; '' if none has changed.
export function thresholdCommand(directory, calibrated, thresholds) {
  const options = THRESHOLD_OPTIONS
    .filter((group) => Object.keys(group).some((key) => thresholds[key] !== calibrated[key]))
    .flatMap(Object.entries)
    .filter(([key]) => Number.isFinite(thresholds[key]))
    .map(([key, option]) => `${option} ${thresholds[key]}`);
  return options.length ? `uadjax threshold ${quoteForShell(directory)} ${options.join(' ')}` : '';
}

// Makes a button copy the text of an element; without access to the clipboard it is hidden.
export function startCopy(button, source) {
  button.hidden = !navigator.clipboard;
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
}
