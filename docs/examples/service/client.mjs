// Asks a service about an image: `node client.mjs photo.png [http://localhost:8000]`. In a browser
// the same `fetch` takes a File as its body.
import {readFile} from 'node:fs/promises';

const [path, url = 'http://localhost:8000'] = process.argv.slice(2);
const answer = await fetch(`${url}/image-anomaly-detection`, {
  method: 'POST',
  headers: {'Content-Type': 'application/octet-stream'}, // The file as it is: nothing is encoded.
  body: await readFile(path),
});
const told = await answer.json();
if (!answer.ok) throw new Error(`${answer.status}: ${told.errorMsg}`);
const {label, score, regions} = told.result;
console.log(label, score, JSON.stringify(regions));
