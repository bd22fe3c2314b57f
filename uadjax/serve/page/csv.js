// CSV that no spreadsheet evaluates as formulas, by the rule of `uadjax.system.files.to_csv`.

const FORMULA = /^'*[=+\-@\t\r]/;

function toCell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') {
    return String(value).replace('Infinity', 'inf').replace('NaN', 'nan');
  }
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// Texts that begin with =, +, -, @, a tab or a carriage return get a leading apostrophe.
export const toCsv = (rows) => rows.map((row) => `${row.map(toCell).join(',')}\n`).join('');
