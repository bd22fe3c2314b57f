// The service: what it is asked, who may ask, and how long to wait where it has no time.

const KEY = 'uadjax-token';
const LONGEST = 30;  // Seconds between two attempts.
let wrong = false;
let wanted = null;

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  needed: false,
  show: () => {},  // Set by who has a form for it.
  set(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    wanted?.resolve();
    wanted = null;
  },
};

function given() {
  token.needed = true;
  if (!wanted) {
    wanted = Promise.withResolvers?.() ?? {};
    wanted.promise ??= new Promise((resolve) => { wanted.resolve = resolve; });
    token.show(wrong);
  }
  return wanted.promise;
}

const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener('abort', () => {
    clearTimeout(timer);
    resolve();
  });
});

// The answer's result; asks again as long as it is told to. Throws what the service says is wrong.
// `waiting` is told why once it has to wait, and '' when it does no longer.
async function ask(path, { waiting, signal, ...options } = {}) {
  let held = false;
  for (;;) {
    signal?.throwIfAborted();
    const used = token.get();
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, signal });
    } catch (error) {
      signal?.throwIfAborted();
      throw new Error('The service cannot be reached.', { cause: error });
    }
    const told = await response.json().catch(() => ({}));
    if (held && response.status !== 503) waiting?.('');
    held &&= response.status === 503;
    if (response.ok) return told.result;
    const problem = told.errorMsg || `The service answered ${response.status}.`;
    if (response.status === 503) {
      const seconds = Number(response.headers.get('Retry-After')) || 1;
      if (!held) waiting?.(problem);
      held = true;
      await pause(Math.min(seconds, LONGEST), signal);
    } else if (response.status === 401) {
      if (used !== token.get()) continue;  // Another one was given meanwhile.
      wrong = Boolean(used);
      await given();
    } else {
      throw new Error(problem);
    }
  }
}

let most = Infinity;  // Bytes of a file.
export const listModels = (waiting) => ask('/models', { waiting }).then(({ models, limits }) => {
  most = limits.max_bytes;
  return models;
});

export async function judge(file, model, signal, waiting) {
  // Not sent: a refusal in the midst of it looks like a service that is gone.
  if (file.size > most) throw new Error(`It has ${file.size} bytes; ${most} are the most here.`);
  const query = new URLSearchParams({ heatmap: true, labelMap: false, model });
  const result = await ask(`/image-anomaly-detection?${query}`, {
    method: 'POST', body: file, signal, waiting,
    headers: { 'Content-Type': 'application/octet-stream' },
  });
  const { heatmap: { image, low, high }, ...told } = result;
  const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
  return { ...told, low, high, map: new Blob([bytes], { type: 'image/png' }) };
}
