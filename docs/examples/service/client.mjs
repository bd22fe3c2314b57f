// Sends an image to the service: `node client.mjs photo.png [http://localhost:8000]`. In a browser
// the body of the same `fetch` is a File.
import {readFile} from 'node:fs/promises';

const [path, url = 'http://localhost:8000'] = process.argv.slice(2);
const response = await fetch(`${url}/image-anomaly-detection`, {
  method: 'POST',
  headers: {'Content-Type': 'application/octet-stream'}, // The file itself, not base64.
  body: await readFile(path),
});
const body = await response.json();
if (!response.ok) throw new Error(`${response.status}: ${body.errorMsg}`);
const {label, score, regions} = body.result;
console.log(label, score, JSON.stringify(regions));
