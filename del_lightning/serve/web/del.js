// The mechanism in the page: thresholds in, codes and a frame out, and what an attacker makes of them.
//
// A twin of del_lightning/privacy/secure.py, wire.py and serve/bundle.py: the same integers, and for the same random
// bytes the same codes bit by bit. Nothing here touches the document or the network, so it also runs under Node.

const WORD_BITS = 32;
const CHUNK = 1 << 16; // coordinates drawn at a time, as in Python: it decides which bytes go where
const QUOTA = 1 << 16; // most bytes that WebCrypto gives at once
const HEADER_BYTES = 52;
const VERSION = 1;
const PREFIX_IDS = 2;
const PRIOR_SCALE = 2048;
const ARRAYS = { "<u4": Uint32Array, "<u2": Uint16Array };

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (; byte; byte >>= 1) count += byte & 1;
  return count;
});

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

/** Random bytes of the browser's cryptographic generator. */
export function systemBytes(count) {
  const bytes = new Uint8Array(count);
  for (let start = 0; start < count; start += QUOTA) {
    crypto.getRandomValues(bytes.subarray(start, Math.min(count, start + QUOTA)));
  }
  return bytes;
}

/** Read a .npy file of one of the two types that a bundle holds: { data, shape }. */
export function parseNpy(buffer) {
  const view = new DataView(buffer);
  if (view.getUint32(0) !== 0x934e554d || view.getUint8(6) !== 1) throw new Error("not a NumPy file of version 1");
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 10, start - 10));
  const type = ARRAYS[/'descr': '([^']+)'/.exec(header)?.[1]];
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1].split(",").filter((part) => part.trim()).map(Number);
  if (!type || !shape || header.includes("'fortran_order': True")) throw new Error(`unknown NumPy array: ${header}`);
  return { data: new type(buffer, start, shape.reduce((a, b) => a * b, 1)), shape };
}

/** Draw Bin(trials[j], 1/2) for every j: ones among the lowest trials[j] of random bits. */
function fairCounts(trials, source) {
  const most = trials.reduce((a, b) => Math.max(a, b), 0);
  const size = [1, 2, 4, 8].find((bytes) => 8 * bytes >= Math.min(most, 64));
  const rows = Math.ceil(most / (8 * size));
  const words = source(rows * trials.length * size); // (rows, n) little-endian words
  const counts = new Int32Array(trials.length);
  for (let row = 0; row < rows; row++) {
    for (let j = 0; j < trials.length; j++) {
      const first = (row * trials.length + j) * size;
      let kept = Math.min(Math.max(trials[j] - 8 * size * row, 0), 8 * size);
      for (let byte = first; kept > 0; byte++, kept -= 8) counts[j] += ONES[words[byte] & (0xff >> Math.max(0, 8 - kept))];
    }
  }
  return counts;
}

/** Draw Bin(trials, a / 2^32) for every threshold a, exactly; see count_below in secure.py for the proof. */
function countBelow(thresholds, trials, source) {
  const undecided = new Int32Array(thresholds.length).fill(trials);
  const counts = new Int32Array(thresholds.length);
  for (let position = WORD_BITS - 1; position >= 0 && undecided.some((left) => left > 0); position--) {
    const decided = fairCounts(undecided, source);
    for (let j = 0; j < decided.length; j++) {
      if ((thresholds[j] >>> position) & 1) counts[j] += decided[j];
      undecided[j] -= decided[j];
    }
  }
  return counts;
}

/**
 * Draw codes 0..2^bits - 1 with fresh randomness.
 * @param {Uint32Array} thresholds one a coordinate; clamped to [2^32 - aPlus, aPlus], whatever the table says
 * @param {number} bits n
 * @param {number} aPlus the mechanism's largest threshold
 * @param {(count: number) => Uint8Array} source of random bytes
 */
export function drawCodes(thresholds, bits, aPlus, source = systemBytes) {
  const clamped = thresholds.map((a) => Math.min(Math.max(a, 2 ** WORD_BITS - aPlus), aPlus));
  const codes = new Uint8Array(clamped.length);
  for (let start = 0; start < clamped.length; start += CHUNK) {
    codes.set(countBelow(clamped.subarray(start, start + CHUNK), (1 << bits) - 1, source), start);
  }
  return codes;
}

/** Pack codes without gaps, highest bit first. */
export function packCodes(codes, bits) {
  const packed = new Uint8Array(Math.ceil((codes.length * bits) / 8));
  for (let i = 0; i < codes.length * bits; i++) {
    const bit = (codes[Math.floor(i / bits)] >> (bits - 1 - (i % bits))) & 1;
    packed[i >> 3] |= bit << (7 - (i & 7));
  }
  return packed;
}

function crc32(...parts) {
  let crc = ~0;
  for (const part of parts) for (const byte of part) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff];
  return ~crc >>> 0;
}

/** The request for codes of `tokens` tokens, as wire.py writes it: prefix as token ids, no suffix, packed payload. */
export function encodeFrame(manifest, codes) {
  const payload = packCodes(codes, manifest.bits);
  const prefix = 4 * manifest.prefix_ids.length;
  const frame = new Uint8Array(HEADER_BYTES + prefix + payload.length);
  const view = new DataView(frame.buffer);
  frame.set(new TextEncoder().encode("DELf"));
  frame.set([VERSION, PREFIX_IDS, manifest.bits], 4);
  view.setUint16(8, manifest.dim, true);
  frame.set(fromHex(manifest.model), 12);
  frame.set(fromHex(manifest.setting), 20);
  const numbers = [manifest.a_plus, codes.length / manifest.dim, prefix, 0, payload.length];
  numbers.forEach((number, i) => view.setUint32(28 + 4 * i, number, true));
  manifest.prefix_ids.forEach((id, i) => view.setUint32(HEADER_BYTES + 4 * i, id, true));
  frame.set(payload, HEADER_BYTES + prefix);
  view.setUint32(48, crc32(frame.subarray(0, 48), frame.subarray(HEADER_BYTES)), true);
  return frame;
}

function fromHex(text) {
  return Uint8Array.from(text.match(/../g), (digits) => parseInt(digits, 16));
}

/** A client bundle: the tables of one mechanism. */
export class Mechanism {
  /**
   * @param {object} manifest manifest.json
   * @param {ArrayBuffer} thresholds thresholds.npy
   * @param {ArrayBuffer} prior prior.npy
   */
  constructor(manifest, thresholds, prior) {
    this.manifest = manifest;
    this.thresholds = parseNpy(thresholds).data;
    this.prior = parseNpy(prior).data;
    const { vocab_size: tokens, dim } = manifest;
    if (this.thresholds.length !== tokens * dim || this.prior.length !== tokens) throw new Error("the bundle is damaged");
  }

  /** Fresh codes of token ids, one row of `dim` codes a token: the one thing that may leave the device. */
  release(ids, source = systemBytes) {
    const { dim, bits, a_plus: aPlus, vocab_size: tokens } = this.manifest;
    if (ids.some((id) => id >= tokens)) throw new Error("the text holds a token that the model does not know");
    const rows = new Uint32Array(ids.length * dim);
    ids.forEach((id, i) => rows.set(this.thresholds.subarray(id * dim, (id + 1) * dim), i * dim));
    return drawCodes(rows, bits, aPlus, source);
  }

  /** The best attack on a single token: the likeliest id for its codes under public frequencies, context left out. */
  invert(codes) {
    const { dim, bits, vocab_size: tokens } = this.manifest;
    const { weights, bias } = (this.attack ??= this.#prepareAttack());
    const centred = Float64Array.from(codes, (code) => code - ((1 << bits) - 1) / 2);
    let best = 0;
    let highest = -Infinity;
    for (let token = 0, at = 0; token < tokens; token++) {
      let score = bias[token];
      for (let j = 0; j < dim; j++, at++) score += centred[j] * weights[at];
      if (score > highest) [best, highest] = [token, score];
    }
    return best;
  }

  /** ln(p/q) of every threshold, and all of a token's score that does not depend on the codes. */
  #prepareAttack() {
    const { dim, bits } = this.manifest;
    const half = ((1 << bits) - 1) / 2;
    const weights = new Float32Array(this.thresholds.length);
    const bias = Float64Array.from(this.prior, (steps) => -steps / PRIOR_SCALE);
    this.thresholds.forEach((a, i) => {
      const ones = Math.log(a / 2 ** WORD_BITS);
      const zeros = Math.log1p(-a / 2 ** WORD_BITS);
      weights[i] = ones - zeros;
      bias[Math.floor(i / dim)] += half * (ones + zeros);
    });
    return { weights, bias };
  }
}

/** Server-sent events of a fetched body, as [name, data] pairs. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]);
      const data = fields.filter(([name]) => name === "data").map(([, value]) => value);
      if (data.length) yield [fields.find(([name]) => name === "event")?.[1] ?? "message", data.join("\n")];
    }
  }
}
