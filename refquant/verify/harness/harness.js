// An example of an implementation for `refquant verify --cmd`: a decoder of GGUF blocks in JavaScript. See PROTOCOL.md.
//
//     refquant verify --cmd 'node harness.js' --only gguf-decode
//
// JavaScript computes in float64; Math.fround after every multiplication and addition gives float32's results.
"use strict";
const fs = require("fs");
const { createInterface } = require("readline");
const f = Math.fround;

// ---- numbers

const word = new DataView(new ArrayBuffer(4));
function bitsToFloat(bits) {
  word.setUint32(0, bits);
  return word.getFloat32(0);
}
function half(b, at) {
  const h = b[at] | (b[at + 1] << 8), sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}
const signed = (byte) => (byte << 24) >> 24;

// ---- codes in planes, see layouts.json: code i of block b, whose codes begin at `at`

function nibble(b, at, i, width) {
  const byte = b[at + Math.floor(i / (2 * width)) * width + (i % width)];
  return Math.floor(i / width) % 2 ? byte >> 4 : byte & 15;
}
const crumb = (b, at, i) => (b[at + (i >> 7) * 32 + (i % 32)] >> (2 * ((i % 128) >> 5))) & 3;
const bit = (b, at, i) => (b[at + (i % 32)] >> (i >> 5)) & 1;
const fifth = (b, at, i) => ((b[at + (i >> 3)] >> i % 8) & 1) << 4;
const sixBits = (b, at, j) =>
  j < 4
    ? [b[at + j] & 63, b[at + j + 4] & 63]
    : [(b[at + j + 4] & 15) | ((b[at + j - 4] >> 6) << 4), (b[at + j + 4] >> 4) | ((b[at + j] >> 6) << 4)];
const trit = (byte, place) => (((byte * 3 ** place) & 255) * 3) >> 8;
const trits = (b, i) =>
  i < 160 ? trit(b[i % 32], i >> 5)
  : i < 240 ? trit(b[32 + ((i - 160) % 16)], (i - 160) >> 4)
  : trit(b[48 + ((i - 240) % 4)], (i - 240) >> 2);
const affine = (d, scale, code, dmin, min) => f(f(f(d * scale) * code) - f(dmin * min));
const IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

// ---- formats: weights and bytes of a block, and weight i of block b

const FORMATS = {
  F32: [1, 4, (b) => bitsToFloat((b[0] | (b[1] << 8) | (b[2] << 16) | (b[3] << 24)) >>> 0)],
  F16: [1, 2, (b) => half(b, 0)],
  BF16: [1, 2, (b) => bitsToFloat(((b[0] << 16) | (b[1] << 24)) >>> 0)],
  Q4_0: [32, 18, (b, i) => f(half(b, 0) * (nibble(b, 2, i, 16) - 8))],
  Q4_1: [32, 20, (b, i) => f(f(half(b, 0) * nibble(b, 4, i, 16)) + half(b, 2))],
  Q5_0: [32, 22, (b, i) => f(half(b, 0) * ((nibble(b, 6, i, 16) | fifth(b, 2, i)) - 16))],
  Q5_1: [32, 24, (b, i) => f(f(half(b, 0) * (nibble(b, 8, i, 16) | fifth(b, 4, i))) + half(b, 2))],
  Q8_0: [32, 34, (b, i) => f(half(b, 0) * signed(b[2 + i]))],
  Q2_K: [256, 84, (b, i) => affine(half(b, 80), b[i >> 4] & 15, crumb(b, 16, i), half(b, 82), b[i >> 4] >> 4)],
  Q3_K: [256, 110, (b, i) => {
    const j = i >> 4;
    const scale = ((b[96 + (j % 8)] >> (4 * (j >> 3))) & 15) | (((b[104 + (j % 4)] >> (2 * (j >> 2))) & 3) << 4);
    return f(f(half(b, 108) * (scale - 32)) * ((crumb(b, 32, i) | (bit(b, 0, i) << 2)) - 4));
  }],
  Q4_K: [256, 144, (b, i) => {
    const [scale, min] = sixBits(b, 4, i >> 5);
    return affine(half(b, 0), scale, nibble(b, 16, i, 32), half(b, 2), min);
  }],
  Q5_K: [256, 176, (b, i) => {
    const [scale, min] = sixBits(b, 4, i >> 5);
    return affine(half(b, 0), scale, nibble(b, 48, i, 32) | (bit(b, 16, i) << 4), half(b, 2), min);
  }],
  Q6_K: [256, 210, (b, i) =>
    f(f(half(b, 208) * signed(b[192 + (i >> 4)])) * ((nibble(b, 0, i, 64) | (crumb(b, 128, i) << 4)) - 32))],
  IQ4_NL: [32, 18, (b, i) => f(half(b, 0) * IQ4[nibble(b, 2, i, 16)])],
  IQ4_XS: [256, 136, (b, i) => {
    const j = i >> 5, high = ((b[2] | (b[3] << 8)) >> (2 * j)) & 3;
    const scale = ((b[4 + (j >> 1)] >> (4 * (j % 2))) & 15) | (high << 4);
    return f(f(half(b, 0) * (scale - 32)) * IQ4[nibble(b, 8, i, 16)]);
  }],
  TQ1_0: [256, 54, (b, i) => f(half(b, 52) * (trits(b, i) - 1))],
  TQ2_0: [256, 66, (b, i) => f(half(b, 64) * (crumb(b, 0, i) - 1))],
  MXFP4: [32, 17, (b, i) => f(2 ** (b[0] - 128) * E2M1[nibble(b, 1, i, 16)])],
};

// ---- messages

function decode({ format, shape, inputs, output }) {
  if (!(format in FORMATS)) return { type: "error", message: `unknown format ${format}` };
  const [weights, bytes, weight] = FORMATS[format];
  const data = fs.readFileSync(inputs.blocks.path), count = shape[0] * shape[1];
  if (data.length * weights !== count * bytes || count % weights)
    return { type: "error", message: `${data.length} bytes are not whole blocks of ${count} weights` };
  const w = Buffer.alloc(4 * count);
  for (let i = 0; i < count; i++) {
    const at = Math.floor(i / weights) * bytes;
    w.writeFloatLE(weight(data.subarray(at, at + bytes), i % weights), 4 * i);
  }
  fs.writeFileSync(output + "0", w);
  return { type: "ok", outputs: { w: { path: output + "0", dtype: "float32", shape } } };
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.type === "bye") process.exit(0);
  const hello = { type: "hello", protocol: 1, name: "example in JavaScript", ops: ["dequantize"] };
  const reply = message.type === "hello" ? { ...hello, formats: Object.keys(FORMATS) } : decode(message);
  process.stdout.write(JSON.stringify(reply) + "\n");
});
