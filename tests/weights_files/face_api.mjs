// What face-api itself makes of a photo, for write_published.py:
//   node face_api.mjs PACKAGE RGB_FILE OUT     # the npm package unpacked; 512x512x3 bytes
// OUT: per default box its score and (top, left, bottom, right), float32.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, photo, out] = process.argv.slice(2);
// The bundle for browsers, with tfjs in it; on Node it would want a canvas.
Object.defineProperty(process, 'versions', { value: {} });
globalThis.window = globalThis;
globalThis.document = { createElement: () => ({ getContext: () => null }) };
fs.copyFileSync(path.join(folder, 'dist/face-api.esm.js'), path.join(folder, 'bundle.mjs'));
const faceapi = await import(pathToFileURL(path.join(folder, 'bundle.mjs')));
await faceapi.tf.setBackend('cpu');

const model = path.join(folder, 'model/ssd_mobilenetv1_model');
const [group] = JSON.parse(fs.readFileSync(`${model}-weights_manifest.json`));
const bytes = Uint8Array.from(fs.readFileSync(`${model}.bin`)).buffer;
const network = new faceapi.SsdMobilenetv1();
network.loadFromWeightMap(faceapi.tf.io.decodeWeights(bytes, group.weights));
const pixels = Float32Array.from(fs.readFileSync(photo));
const x = faceapi.tf.tensor4d(pixels, [1, 512, 512, 3]);
const { boxes, scores } = network.forwardInput(new faceapi.NetInput([x]));
const rows = faceapi.tf.concat([scores[0].reshape([-1, 1]), boxes[0]], 1).dataSync();
fs.writeFileSync(out, Buffer.from(Float32Array.from(rows).buffer));
