"use strict";

// A zip of files that are compressed already: stored, names in UTF-8 (APPNOTE.TXT 6.3, without zip64).
const MOST_IN_A_ZIP = 0xfffffffe;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  for (let bit = 0; bit < 8; bit++) number = number & 1 ? 0xedb88320 ^ (number >>> 1) : number >>> 1;
  return number;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

// [{ name, blob }] -> a Blob. Names that occur twice get a number.
async function zipped(entries) {
  const parts = [];
  const directory = [];
  const taken = new Set();
  let offset = 0;
  for (const { name, blob } of entries) {
    const path = new TextEncoder().encode(unused(name, taken));
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    const shared = [[20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [crc, 4], [blob.size, 4], [blob.size, 4], [path.length, 2], [0, 2]];
    const head = numbers([[0x04034b50, 4], ...shared]);
    directory.push(numbers([[0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), path);
    parts.push(head, path, blob);
    offset += head.length + path.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = entries.length;
  const end = numbers([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function unused(name, taken) {
  const dot = name.lastIndexOf(".");
  let other = name;
  for (let count = 2; taken.has(other.toLowerCase()); count++) other = `${name.slice(0, dot)} (${count})${name.slice(dot)}`;
  taken.add(other.toLowerCase());
  return other;
}

// Little-endian numbers of 2 or 4 bytes.
function numbers(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, width]) => sum + width, 0)));
  let place = 0;
  for (const [value, width] of fields) {
    if (width === 2) view.setUint16(place, value, true);
    else view.setUint32(place, value, true);
    place += width;
  }
  return new Uint8Array(view.buffer);
}
