// Draws avatars of 32x32 pixels as RGB PNG files, one folder for each design. The same seed texts
// give the same pixels, so the data set need not be kept anywhere.

import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { crc32, deflateSync } from 'node:zlib';

import { openPeeps, pixelArt, thumbs } from '@dicebear/collection';
import { createAvatar } from '@dicebear/core';
import { Resvg } from '@resvg/resvg-js';

const USAGE = `\
usage: node draw.mjs OUT [options]

Draws OUT/peep/00000.png, OUT/pixel/00000.png, OUT/thumb/00000.png and so on.

  --peep N             avatars of Open Peeps (default 12000)
  --pixel N            avatars of Pixel Art (default 12000)
  --thumb N            avatars of Thumbs (default 6000)
  --seed-prefix TEXT   put before each seed text, which is peep-0, peep-1, ... (default: nothing)
  --force              draw into OUT even if it is not empty; only files of the same name are lost
  --help               print this
`;

const SIZE = 32;
const MOST = 100_000; // file names have five digits
const PASTELS = ['b6e3f4', 'c0aede', 'd1d4f9', 'ffd5dc', 'ffdfbf'];

// Thumbs has background colours of its own; the other two would be transparent without any.
const CLASSES = {
  peep: { style: openPeeps, options: { backgroundColor: PASTELS }, count: 12_000 },
  pixel: { style: pixelArt, options: { backgroundColor: PASTELS }, count: 12_000 },
  thumb: { style: thumbs, options: {}, count: 6_000 },
};

/** A mistake in the arguments: reported in one line, without a stack trace. */
class UsageError extends Error {}

function readArguments(args) {
  const countOptions = Object.keys(CLASSES).map((name) => [name, { type: 'string' }]);
  let parsed;
  try {
    parsed = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...Object.fromEntries(countOptions),
        'seed-prefix': { type: 'string', default: '' },
        force: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw new UsageError(error.message.split('\n')[0]);
  }
  const { positionals, values } = parsed;
  if (values.help) return { help: true };
  if (positionals.length !== 1 || positionals[0] === '') {
    throw new UsageError('name one folder to draw into: node draw.mjs OUT (--help tells more).');
  }
  const plan = Object.entries(CLASSES).map(([name, { count }]) => [
    name,
    values[name] === undefined ? count : readCount(name, values[name]),
  ]);
  if (plan.every(([, count]) => count === 0)) {
    throw new UsageError('there is nothing to draw: all counts are 0.');
  }
  return { out: positionals[0], plan, prefix: values['seed-prefix'], force: values.force };
}

function readCount(name, text) {
  if (!/^\d+$/.test(text) || Number(text) > MOST) {
    throw new UsageError(`--${name} must be a whole number from 0 to ${MOST}, not "${text}".`);
  }
  return Number(text);
}

function checkFolder(out, force) {
  let names;
  try {
    names = readdirSync(out);
  } catch (error) {
    if (error.code === 'ENOENT') return;
    if (error.code === 'ENOTDIR') throw new UsageError(`${out} is not a folder.`);
    throw error;
  }
  if (names.length > 0 && !force) {
    throw new UsageError(`${out} is not empty. Name another folder, or add --force.`);
  }
}

/** The avatar of a seed text as RGB bytes, row by row. */
function drawAvatar(style, options, seed) {
  const svg = createAvatar(style, { ...options, seed }).toString();
  const image = new Resvg(svg, {
    fitTo: { mode: 'width', value: SIZE },
    font: { loadSystemFonts: false }, // no design has text
  }).render();
  const rgba = image.pixels;
  const rgb = Buffer.alloc(SIZE * SIZE * 3);
  for (let pixel = 0; pixel < SIZE * SIZE; pixel++) {
    if (rgba[4 * pixel + 3] !== 255) throw new Error(`the avatar of ${seed} is not opaque`);
    rgba.copy(rgb, 3 * pixel, 4 * pixel, 4 * pixel + 3);
  }
  return rgb;
}

/** A PNG file of RGB bytes. resvg's own encoder would add a channel that is 255 everywhere. */
function encodePng(rgb) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(SIZE, 0);
  header.writeUInt32BE(SIZE, 4);
  header.set([8, 2, 0, 0, 0], 8); // 8 bits, RGB, deflate, the usual filters, not interlaced
  const rowBytes = 3 * SIZE;
  const rows = Buffer.alloc(SIZE * (1 + rowBytes)); // each row begins with its filter, 0 for none
  for (let y = 0; y < SIZE; y++) {
    rgb.copy(rows, y * (1 + rowBytes) + 1, y * rowBytes, (y + 1) * rowBytes);
  }
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    pngChunk('IHDR', header),
    pngChunk('IDAT', deflateSync(rows, { level: 9 })),
    pngChunk('IEND', Buffer.alloc(0)),
  ]);
}

function pngChunk(type, data) {
  const chunk = Buffer.alloc(12 + data.length);
  chunk.writeUInt32BE(data.length, 0);
  chunk.write(type, 4, 'latin1');
  data.copy(chunk, 8);
  chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + data.length)), 8 + data.length);
  return chunk;
}

function main() {
  const { help, out, plan, prefix, force } = readArguments(process.argv.slice(2));
  if (help) {
    process.stdout.write(USAGE);
    return;
  }
  checkFolder(out, force);
  for (const [name, count] of plan) {
    if (count === 0) continue;
    const folder = join(out, name);
    mkdirSync(folder, { recursive: true });
    const { style, options } = CLASSES[name];
    for (let number = 0; number < count; number++) {
      const png = encodePng(drawAvatar(style, options, `${prefix}${name}-${number}`));
      writeFileSync(join(folder, `${String(number).padStart(5, '0')}.png`), png);
    }
    console.log(`${folder}: ${count}`);
  }
}

try {
  main();
} catch (error) {
  const expected = error instanceof UsageError || error.syscall !== undefined;
  if (!expected) throw error;
  console.error(`draw.mjs: ${error.message}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
