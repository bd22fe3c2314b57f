// Client of the service: requests, authentication, and retries while the service is busy.

const STORAGE_KEY = 'uadjax-token';
const MAX_RETRY_SECONDS = 30;
let wasRejected = false;
let pendingToken = null;  // A promise with its resolve function, while the user enters a token.

export const token = {
  get: () => sessionStorage.getItem(STORAGE_KEY) ?? '',
  required: false,
  show: () => {},  // Set by the module that owns the form.
  set(value) {
    if (value) sessionStorage.setItem(STORAGE_KEY, value);
    else sessionStorage.removeItem(STORAGE_KEY);
    pendingToken?.resolve();
    pendingToken = null;
  },
};

function requestToken() {
  token.required = true;
  if (!pendingToken) {
    pendingToken = {};
    pendingToken.promise = new Promise((resolve) => { pendingToken.resolve = resolve; });
    token.show(wasRejected);
  }
  return pendingToken.promise;
}

const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener('abort', () => {
    clearTimeout(timer);
    resolve();
  });
});

// Returns the result of the response; retries on 503 and on 401 with another token, and throws the
// message of any other error. `onBusy` is called with the reason when the service is busy, and with
// '' when it no longer is.
async function send(path, { onBusy, signal, ...options } = {}) {
  let isBusy = false;
  for (;;) {
    signal?.throwIfAborted();
    const sentToken = token.get();
    const headers = {
      ...options.headers, ...(sentToken && { Authorization: `Bearer ${sentToken}` }),
    };
    let response;
    try {
      response = await fetch(path, { ...options, headers, signal });
    } catch (error) {
      signal?.throwIfAborted();
      throw new Error('The service cannot be reached.', { cause: error });
    }
    const body = await response.json().catch(() => ({}));
    if (isBusy && response.status !== 503) onBusy?.('');
    isBusy &&= response.status === 503;
    if (response.ok) return body.result;
    const problem = body.errorMsg || `The service returned status ${response.status}.`;
    if (response.status === 503) {
      const seconds = Number(response.headers.get('Retry-After')) || 1;
      if (!isBusy) onBusy?.(problem);
      isBusy = true;
      await pause(Math.min(seconds, MAX_RETRY_SECONDS), signal);
    } else if (response.status === 401) {
      if (sentToken !== token.get()) continue;  // The user has entered another token meanwhile.
      wasRejected = Boolean(sentToken);
      await requestToken();
    } else {
      throw new Error(problem);
    }
  }
}

let maxBytes = Infinity;  // Maximum size of a file.
export const listModels = (onBusy) => send('/models', { onBusy }).then(({ models, limits }) => {
  maxBytes = limits.max_bytes;
  return models;
});

export async function scoreImage(file, model, signal, onBusy) {
  // Checked here: a server that rejects a body while it is being sent looks like a lost connection.
  if (file.size > maxBytes) {
    throw new Error(`The file has ${file.size} bytes; the maximum is ${maxBytes}.`);
  }
  const query = new URLSearchParams({ heatmap: true, labelMap: false, model });
  const result = await send(`/image-anomaly-detection?${query}`, {
    method: 'POST', body: file, signal, onBusy,
    headers: { 'Content-Type': 'application/octet-stream' },
  });
  const { heatmap: { image, low, high }, ...fields } = result;
  const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
  return { ...fields, low, high, heatmap: new Blob([bytes], { type: 'image/png' }) };
}
