// @ts-check
/**
 * One view of a decision, taken apart into paths of hidden units: on a page, in a file, in a notebook.
 *
 * The view asks questions and shows the answers (see docs/view.md); it computes no number of its own but sums, shares
 * and colours. Who answers is its host: the server of `relupath explore`, the answers inside a report, or a kernel.
 *
 * @typedef {{shape: [number, number], step: number, scale: number, data: string}} WireMap
 * @typedef {{mime: string, shape: [number, number], data: string}} WireImage
 * @typedef {{index: number, name: string, logit: number, probability: number}} Score
 * @typedef {{role: string, value: number, weight_part: number, bias: number, map: WireMap}} Row
 * @typedef {{key: string, kind: "path" | "rest" | "bias" | "by-pass", layer: string | null, unit: string | null,
 *            value: number, weight_part: number, bias: number, map: WireMap | null, path: any, name?: string}} Share
 * @typedef {{node: Share, children: Share[], python: string | null, left_out: string[]}} NodeAnswer
 * @typedef {{model: string, notes: string[], pictures: {id: string, name: string}[], partitions: string[],
 *            searches: Record<string, string[]>, adds: boolean, draws: boolean, classes: string[]}} Hello
 * @typedef {{picture: {id: string, name: string, image: WireImage | null, notes: string[]}, best: Score[],
 *            target: Score, against: Score, rows: Row[], levels: string[][], layers: Record<string, number[]>}} Opened
 * @typedef {{cut: string, value: number, ablated: number, without_path: number, before: Score[], after: Score[],
 *            predicted: number}} Cut
 * @typedef {{paths: Share[], several: boolean, stopped: string, held: number | null, search: string}} Found
 * @typedef {Record<string, any>} Question
 * @typedef {{ask: (question: Question, wait?: AbortSignal) => Promise<any>, upload?: (file: File) => Promise<{picture: string}>,
 *            linked: boolean, fixed: Question, command?: string, leave?: () => void}} Host
 * @typedef {{picture: string, target: number | null, against: number | null, on: string, partition: string,
 *            layers: string | null, width: number, root: string, path: string[], search: string,
 *            numbers: Record<string, number>, cut: boolean, pins: string[], sign: string, clip: number,
 *            opacity: number, colours: string, grain: number, theme: string, open: string}} State
 */

// ---------------------------------------------------------------------------------------------------- questions

/** What a question holds unless it says otherwise: as in `_asked.py`. */
const ASKED = {
  ask: "", picture: "", target: null, against: null, on: "target", partition: "channels", layers: null, width: 6,
  root: "", path: [], search: "greedy", numbers: {}, seed: 0,
};

/** @type {State} */
const DEFAULTS = {
  picture: "", target: null, against: null, on: "target", partition: "channels", layers: null, width: 6, root: "",
  path: [], search: "greedy", numbers: {}, cut: false, pins: [], sign: "both", clip: 99.5, opacity: 0.9,
  colours: "RdBu", grain: 0, theme: "auto", open: "units",
};

const ROLES = ["target", "against", "contrast"];

/** How many answers are kept; those not asked for the longest go first. */
const ANSWERS = 200;

/** One line of JSON for a question: sorted, without what has its default. @param {Question} question */
export function keyOf(question) {
  /** @type {Question} */
  const told = {};
  for (const name of Object.keys(question).sort()) {
    const usual = /** @type {Question} */ (ASKED)[name];
    if (name === "ask" || JSON.stringify(question[name]) !== JSON.stringify(usual)) told[name] = question[name];
  }
  return JSON.stringify(told);
}

/** What an answer lacks because it was not put into a report. */
class Deeper extends Error {}

/** @returns {Host} */
function serverHost() {
  const token = new URLSearchParams(location.search).get("token") ?? "";
  /** @param {string} url @param {BodyInit} body @param {string} type @param {AbortSignal} [signal] */
  const post = async (url, body, type, signal) => {
    /** @type {Response} */
    let reply;
    try {
      reply = await fetch(url, { method: "POST", body, signal, headers: { "content-type": type, "x-relupath-token": token } });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Error("relupath does not answer: is it still running?");
    }
    const answer = await reply.json().catch(() => ({}));
    if (!reply.ok) throw new Error(answer.error ?? `relupath answered with status ${reply.status}`);
    return answer;
  };
  return {
    ask: (question, wait) => post("/api/ask", JSON.stringify(question), "application/json", wait),
    upload: (file) => post(`/api/photo?name=${encodeURIComponent(file.name)}`, file, "application/octet-stream"),
    linked: true,
    fixed: {},
  };
}

/** @param {{state: Question, answers: Record<string, any>, command: string}} data @returns {Host} */
function fileHost(data) {
  const ask = async (/** @type {Question} */ question) => {
    const answer = data.answers[keyOf(question)];
    if (answer === undefined) throw new Deeper(data.command);
    return answer;
  };
  return { ask, linked: true, fixed: data.state, command: data.command };
}

/** @param {any} model @returns {Host} */
function widgetHost(model) {
  /** @type {Map<number, {done: (answer: any) => void, failed: (error: Error) => void}>} */
  const waiting = new Map();
  let last = 0;
  const heard = (/** @type {any} */ message) => {
    const one = waiting.get(message?.id);
    if (one === undefined) return;
    waiting.delete(message.id);
    if (message.error === undefined) one.done(message.answer);
    else one.failed(new Error(message.error));
  };
  model.on("msg:custom", heard);
  const ask = (/** @type {Question} */ question, /** @type {AbortSignal | undefined} */ wait) =>
    new Promise((done, failed) => {
      const id = ++last;
      waiting.set(id, { done, failed });
      model.send({ id, question });
      wait?.addEventListener("abort", () => {
        if (waiting.delete(id)) model.send({ forget: id });
        failed(wait.reason);
      });
    });
  return { ask, linked: false, fixed: model.get("state") ?? {}, leave: () => model.off("msg:custom", heard) };
}

// ------------------------------------------------------------------------------------------------------ elements

/**
 * An element with attributes, listeners (on...) and children.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {Record<string, any>} [given] @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The element that has the focus, on a page or inside a notebook's own root. @param {Node} inside */
const focused = (inside) => /** @type {Document | ShadowRoot} */ (inside.getRootNode()).activeElement;

/** Replace what an element holds: the button that had the focus keeps it, or the one in its place. @param {Element} element @param {Node[]} children */
function refill(element, children) {
  const all = () => [...element.querySelectorAll("button")], named = (/** @type {Element} */ one) => one.getAttribute("aria-label") ?? one.textContent;
  const old = all().find((button) => button === focused(element)), at = old ? all().indexOf(old) : -1;
  element.replaceChildren(...children);
  if (old) (all().find((button) => named(button) === named(old)) ?? all()[Math.min(at, all().length - 1)])?.focus();
}

/** @param {string} label @param {HTMLElement} control */
function field(label, control) {
  control.setAttribute("aria-label", label);
  return h("label", { class: "field" }, h("span", {}, label), control);
}

/** @param {Record<string, string>} options @param {(value: string) => void} changed */
function select(options, changed) {
  /** @type {HTMLSelectElement} */
  const element = h("select", { onchange: () => changed(element.value) });
  return choices(element, options, "");
}

/** @param {HTMLSelectElement} element @param {Record<string, string>} options @param {string} chosen */
function choices(element, options, chosen) {
  element.replaceChildren(...Object.entries(options).map(([value, text]) => h("option", { value }, text)));
  element.value = chosen;
  return element;
}

/** @param {number} low @param {number} high @param {number} step @param {(v: number) => void} moved */
function slider(low, high, step, moved) {
  /** @type {HTMLInputElement} */
  const element = h("input", { type: "range", min: low, max: high, step, oninput: () => moved(Number(element.value)) });
  return element;
}

// ------------------------------------------------------------------------------------------------------- numbers

const MINUS = "\u2212";
const signed = (/** @type {string} */ text) => text.replace("-", MINUS);

/** How a column of numbers is printed, so that they stand below each other and add up. @param {number[]} values */
export function scaleOf(values) {
  const size = Math.max(...values.map(Math.abs), 0);
  const exponent = size > 0 ? Math.floor(Math.log10(size)) : 0;
  if (exponent < -3 || exponent > 5) return { factor: 10 ** exponent, digits: 3, exponent };
  return { factor: 1, digits: Math.max(0, Math.min(5, 3 - exponent)), exponent: 0 };
}

/** The last digit that is printed. @param {{factor: number, digits: number}} scale */
const unitOf = (scale) => scale.factor / 10 ** scale.digits;

/** @param {number} value @param {{factor: number, digits: number}} scale */
export function told(value, scale) {
  const text = (value / scale.factor).toFixed(scale.digits);
  return signed(Number(text) === 0 ? text.replace("-", "") : text);
}

/**
 * Numbers as they are printed, so that what is printed adds up: each is rounded down or up, up where the most is lost.
 * @param {number[]} values @param {number} total @param {{factor: number, digits: number}} scale
 */
export function adding(values, total, scale) {
  const unit = unitOf(scale), low = values.map((value) => Math.floor(value / unit));
  const missing = Math.round(total / unit) - low.reduce((sum, value) => sum + value, 0);
  const order = values.map((_, i) => i).sort((i, j) => values[j] / unit - low[j] - (values[i] / unit - low[i]));
  const every = Math.floor(missing / values.length), some = missing - every * values.length;
  order.forEach((i, place) => (low[i] += every + (place < some ? 1 : 0)));
  return low.map((value) => value * unit);
}

/** Value, weight part and bias as they are printed. @param {Row | Share} row @param {{factor: number, digits: number}} scale */
function printedOf({ value, weight_part, bias }, scale) {
  const [whole] = adding([value], value, scale);
  return [whole, ...adding([weight_part, bias], whole, scale)];
}

/**
 * The same of target, other class and contrast, so that the printed ones differ by the printed contrast: what is taken
 * apart is rounded by itself, as in its column.
 * @param {Row[]} rows @param {{factor: number, digits: number}} scale @param {string} on
 */
function printedOfAll(rows, scale, on) {
  const [target, against, contrast] = rows.map((row) => printedOf(row, scale));
  const less = (/** @type {number[]} */ other) => target.map((number, i) => number - other[i]);
  return on === "against" ? [target, against, less(against)] : [target, less(contrast), contrast];
}

/** What the two parts of a value are, which a line may be broken between. @param {string} weights @param {string} bias */
const partsOf = (weights, bias) => `weights\u00a0${weights}  bias\u00a0${bias}`;

/** A number by itself. @param {number} value */
function alone(value) {
  const scale = scaleOf([value]);
  return told(value, scale) + (scale.exponent ? ` \u00d7 10${raised(scale.exponent)}` : "");
}

/** @param {number} exponent */
const raised = (exponent) =>
  [...String(exponent)].map((c) => (c === "-" ? "\u207b" : "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[Number(c)])).join("");

/** @param {number} p */
const percent = (p) => (p >= 0.9995 && p < 1 ? "> 99.9 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

// ---------------------------------------------------------------------------------------------------------- maps

/** Colours from against to for, in nine steps; the middle is nothing. */
const COLOURS = {
  RdBu: { text: "red and blue", stops: ["053061", "2c75b4", "7db8da", "d1e5f0", "f7f7f7", "fddbc7", "f09c7b", "c6413e", "67001f"] },
  PuOr: { text: "orange and purple", stops: ["2d004b", "624994", "a59dc8", "d8daeb", "f7f7f7", "fee0b6", "f2a65a", "c0670d", "7f3b08"] },
  managua: { text: "blue and yellow, dark", stops: ["81e6ff", "6bb1e2", "5a7bb8", "4a4a82", "4f2a4a", "7b3a3b", "a05b43", "c78f56", "ffcf67"] },
};

/** @type {Map<string, Uint8ClampedArray>} */
const tables = new Map();

/** 511 colours, from -1 to 1. @param {string} name */
function table(name) {
  const known = tables.get(name);
  if (known) return known;
  const stops = COLOURS[/** @type {keyof typeof COLOURS} */ (Object.hasOwn(COLOURS, name) ? name : "RdBu")].stops;
  const parsed = stops.map((s) => [0, 2, 4].map((i) => parseInt(s.slice(i, i + 2), 16)));
  const made = new Uint8ClampedArray(511 * 3);
  for (let i = 0; i < 511; i++) {
    const at = (i / 510) * (parsed.length - 1), low = Math.min(Math.floor(at), parsed.length - 2);
    for (let c = 0; c < 3; c++) made[3 * i + c] = parsed[low][c] + (at - low) * (parsed[low + 1][c] - parsed[low][c]);
  }
  tables.set(name, made);
  return made;
}

/** @param {string} text */
function bytesOf(text) {
  const plain = atob(text), bytes = new Uint8Array(plain.length);
  for (let i = 0; i < plain.length; i++) bytes[i] = plain.charCodeAt(i);
  return bytes;
}

/** The numbers of a map: scale * sign(q) * (q / 127)^2. @param {WireMap} map */
export async function valuesOf(map) {
  const stream = new Blob([bytesOf(map.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const whole = new Int8Array(await new Response(stream).arrayBuffer());
  const values = new Float32Array(whole.length);
  for (let i = 0; i < whole.length; i++) values[i] = (map.scale * whole[i] * Math.abs(whole[i])) / 16129;
  return values;
}

/** All sizes other than zero, in order. @param {Float32Array[]} maps */
function sizesOf(maps) {
  const sizes = new Float32Array(maps.reduce((count, map) => count + map.length, 0));
  let count = 0;
  for (const map of maps) for (const v of map) if (v !== 0) sizes[count++] = Math.abs(v);
  return sizes.subarray(0, count).sort();
}

/** Where the colours end: a percentile of the sizes. @param {Float32Array} sizes @param {number} clip */
const endOf = (sizes, clip) => sizes[Math.min(sizes.length - 1, Math.floor((clip / 100) * sizes.length))] || 1;

/** The longest side in which pictures are painted: each thumbnail is as fine as the picture below it. */
const FINEST = 512;

/** For so many milliseconds nothing is drawn in place of an answer, which that would delay. */
const AT_ONCE = 150;
/** After so many the page says that it computes. */
const SLOW = 600;
/** So long nobody has asked for anything when the page checks itself, which no click should wait for. */
const AT_REST = 500;

/** @param {WireImage} image */
async function pixelsOf(image) {
  const [rows, columns] = image.shape, small = Math.min(1, FINEST / Math.max(rows, columns));
  const size = { resizeWidth: Math.max(1, Math.round(small * columns)), resizeHeight: Math.max(1, Math.round(small * rows)) };
  const bitmap = await createImageBitmap(new Blob([bytesOf(image.data)], { type: image.mime }), small < 1 ? size : {});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** The longest side of a thumbnail's pixels. */
const THUMB = 112;

/**
 * Paint a map over the picture in grey.
 * @param {HTMLCanvasElement} canvas @param {{values: Float32Array, shape: [number, number]} | null} map
 * @param {[number, number]} shape @param {ImageData | null} photo @param {number} end @param {State} state
 */
function paint(canvas, map, shape, photo, end, state) {
  const [whole, across] = photo ? [photo.height, photo.width] : grown(shape);
  const every = canvas.classList.contains("thumb") ? Math.ceil(Math.max(whole, across) / THUMB) : 1;
  const rows = Math.ceil(whole / every), columns = Math.ceil(across / every);
  if (canvas.width !== columns || canvas.height !== rows) [canvas.width, canvas.height] = [columns, rows];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(columns, rows), out = new Uint32Array(image.data.buffer);
  if (map === null) {
    const pixels = photo ? new Uint32Array(photo.data.buffer) : null;
    for (let y = 0, o = 0; y < rows; y++) for (let x = 0; x < columns; x++, o++) out[o] = pixels ? pixels[y * every * across + x * every] : 0xfff7f7f7;
    context.putImageData(image, 0, 0);
    return;
  }
  const { values, shape: [high, wide] } = map, colours = table(state.colours), dark = state.colours === "managua";
  const greys = photo ? greysOf(photo, dark) : null, bare = dark ? 40 : 247;
  const times = Math.ceil(Math.max(...shape) / Math.max(...map.shape));
  const places = (/** @type {number} */ count, /** @type {number} */ size, /** @type {number} */ entries, /** @type {number} */ last) =>
    Int32Array.from({ length: count }, (_, i) => Math.min(last - 1, Math.floor(Math.floor((i * every * entries) / size) / times)));
  const down = places(rows, whole, shape[0], high), right = places(columns, across, shape[1], wide);
  const least = state.sign === "for" ? 0 : -Infinity, most = state.sign === "against" ? 0 : Infinity;
  const shades = Float32Array.from({ length: 511 }, (_, i) => state.opacity * Math.abs((i - 255) / 255) ** 0.6);
  for (let y = 0, o = 0; y < rows; y++) {
    const row = down[y] * wide, line = y * every * across;
    for (let x = 0; x < columns; x++, o++) {
      const v = Math.max(least, Math.min(most, values[row + right[x]]));
      const i = Math.round(255 + 255 * Math.max(-1, Math.min(1, v / end))), a = shades[i];
      const ground = (greys ? greys[line + x * every] : bare) * (1 - a);
      out[o] = 0xff000000 | ((ground + colours[3 * i + 2] * a) << 16) | ((ground + colours[3 * i + 1] * a) << 8) | (ground + colours[3 * i] * a);
    }
  }
  context.putImageData(image, 0, 0);
}

/** @type {WeakMap<ImageData, Map<boolean, Uint8ClampedArray>>} */
const grounds = new WeakMap();

/** A picture in pale grey, or in dark grey. @param {ImageData} photo @param {boolean} dark */
function greysOf(photo, dark) {
  const known = grounds.get(photo) ?? new Map(), pixels = photo.data;
  grounds.set(photo, known);
  if (!known.has(dark)) {
    const [base, share] = dark ? [20, 0.4] : [110, 0.56];
    known.set(dark, Uint8ClampedArray.from({ length: pixels.length / 4 }, (_, i) =>
      base + share * (0.3 * pixels[4 * i] + 0.59 * pixels[4 * i + 1] + 0.11 * pixels[4 * i + 2])));
  }
  return /** @type {Uint8ClampedArray} */ (known.get(dark));
}

/** A map of few entries, large enough to see. @param {[number, number]} shape @returns {[number, number]} */
function grown([rows, columns]) {
  const times = Math.max(1, Math.floor(96 / Math.max(rows, columns)));
  return [rows * times, columns * times];
}

/** A map with neighbours summed, so that its sum stays what it is. @param {Float32Array} values @param {[number, number]} shape @param {number} grain @returns {{values: Float32Array, shape: [number, number]}} */
function coarse(values, [rows, columns], grain) {
  if (grain === 1) return { values, shape: [rows, columns] };
  const high = Math.ceil(rows / grain), wide = Math.ceil(columns / grain), sums = new Float32Array(high * wide);
  for (let y = 0; y < rows; y++) {
    const to = Math.floor(y / grain) * wide;
    for (let x = 0; x < columns; x++) sums[to + Math.floor(x / grain)] += values[y * columns + x];
  }
  return { values: sums, shape: [high, wide] };
}

/** How many pixels a side are summed, unless it is chosen. @param {[number, number]} shape @param {number} grain */
const grainOf = (shape, grain) => Math.max(1, Math.round(grain || Math.max(...shape) / 56));

/** Maps on one scale: painted together. */
class Group {
  /** @param {{canvas: HTMLCanvasElement, map: WireMap, scaled: boolean}[]} members */
  constructor(members) {
    this.members = members;
    this.end = 1;
    this.grain = -1;
    this.values = Promise.all(members.map(({ map }) => valuesOf(map)));
  }

  /** @param {number} grain */
  async summed(grain) {
    const values = await this.values;
    if (grain !== this.grain || this.ready === undefined) {
      const maps = this.members.map(({ map }, i) => coarse(values[i], map.shape, grainOf(map.shape, grain)));
      const counted = maps.filter((_, i) => this.members[i].scaled);
      this.ready = { maps, sizes: sizesOf((counted.length ? counted : maps).map((map) => map.values)) };
      this.grain = grain;
    }
    return this.ready;
  }

  /** @param {Promise<ImageData | null>} photo @param {State} state */
  async paint(photo, state) {
    const [{ maps, sizes }, ground] = await Promise.all([this.summed(state.grain), photo]);
    this.end = endOf(sizes, state.clip);
    this.members.forEach(({ canvas, map }, i) => paint(canvas, maps[i], map.shape, ground, this.end, state));
  }
}

// ---------------------------------------------------------------------------------------------------------- view

/** @param {State} state */
function toLink(state) {
  const link = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    const usual = DEFAULTS[/** @type {keyof State} */ (name)];
    if (Array.isArray(value)) for (const one of value) link.append(name, one);
    else if (name === "numbers") for (const [n, v] of Object.entries(state.numbers)) link.append(`n.${n}`, String(v));
    else if (value !== usual && value !== null) link.set(name, String(value));
  }
  return link.toString();
}

/** How many units of a level have a share of their own. @param {number} asked */
const widthOf = (asked) => Math.max(1, Math.min(64, Math.round(asked) || DEFAULTS.width));

/** @param {string} text @returns {Partial<State>} */
function fromLink(text) {
  const link = new URLSearchParams(text);
  /** @type {Record<string, any>} */
  const state = {};
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    if (Array.isArray(usual)) state[name] = link.getAll(name);
    else if (name === "numbers") {
      state[name] = Object.fromEntries([...link].filter(([n]) => n.startsWith("n.")).map(([n, v]) => [n.slice(2), Number(v)]));
    } else if (link.has(name)) {
      const value = link.get(name) ?? "";
      const whole = ["target", "against", "width", "clip", "opacity", "grain"].includes(name);
      state[name] = whole ? (Number.isFinite(Number(value)) ? Number(value) : usual) : typeof usual === "boolean" ? value === "true" : value;
    } else state[name] = usual;
  }
  state.width = widthOf(state.width);
  if (!ROLES.includes(state.on)) state.on = DEFAULTS.on;
  return state;
}

const HELP = [
  ["\u2191 \u2193", "the share above, below"], ["\u2192", "open the share, go to its parts"], ["\u2190", "back to the share it is a part of"],
  ["1 2 3", "take apart the target, the other class, their contrast"], ["c", "cut the unit, or undo"],
  ["p", "pin the path"], ["/", "jump to a unit"], ["?", "this list"],
];

const PRESET = { neurons: "single neurons", channels: "channels (first axis)", locations: "places (other axes)", "axis:N": "one axis", "heads:N": "attention heads" };

let views = 0;

class RelupathView extends HTMLElement {
  constructor() {
    super();
    /** @type {State} */
    this.state = { ...DEFAULTS };
    /** @type {Map<string, Promise<any>>} */
    this.answers = new Map();
    /** @type {Map<string, Group>} */
    this.groups = new Map();
    /** What a column shows. @type {WeakMap<Element, NodeAnswer>} */
    this.seen = new WeakMap();
    /** @type {Opened | null} */
    this.opened = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.slow = undefined;
    /** @type {Hello | null} */
    this.hello = null;
    /** @type {Promise<ImageData | null>} */
    this.photo = Promise.resolve(null);
    /** @type {WireImage | null} */
    this.photoOf = null;
    this.turn = 0;
    /** @type {Host | null} */
    this.given = null;
    /** The search that is under way. @type {AbortController | undefined} */
    this.searching = undefined;
    /** The search that is set; the link holds the one whose path is shown. @type {Pick<State, "search" | "numbers">} */
    this.planned = { search: DEFAULTS.search, numbers: {} };
  }

  /** @returns {Host} */
  get host() {
    if (this.given === null) {
      const inside = document.getElementById("relupath-answers");
      this.given = this.getAttribute("host") === "file" && inside ? fileHost(JSON.parse(inside.textContent ?? "")) : serverHost();
    }
    return this.given;
  }

  connectedCallback() {
    if (this.parts) return;
    this.parts = this.build();
    if (this.host.linked) {
      this.state = { ...this.state, ...fromLink(location.hash.slice(1)), ...this.host.fixed };
      window.addEventListener("popstate", () => {
        this.state = { ...this.state, ...fromLink(location.hash.slice(1)), ...this.host.fixed };
        this.show().then(() => this.repaint());
      });
    } else this.state = { ...this.state, ...this.host.fixed };
    const heard = this.host.linked ? document : this;
    heard.addEventListener("keydown", (event) => this.key(/** @type {KeyboardEvent} */ (event)));
    this.start();
  }

  async start() {
    this.controls();
    this.busy(true);
    try {
      this.hello = /** @type {Hello} */ (await this.ask({ ask: "hello" }));
      if (this.state.picture === "") this.state.picture = this.hello.pictures.at(-1)?.id ?? "";
      this.relink();
      this.greet();
      await this.show();
    } catch (error) {
      this.fail(error);
      this.busy(false);
    }
  }

  // --- asking

  /** @param {Question} question @param {AbortSignal} [wait] @returns {Promise<any>} */
  ask(question, wait) {
    const key = keyOf(question), answer = this.answers.get(key) ?? this.host.ask(question, wait);
    wait?.addEventListener("abort", () => this.answers.delete(key));
    if (!this.answers.has(key)) answer.catch(() => this.answers.delete(key));
    this.answers.delete(key);
    this.answers.set(key, answer);
    if (this.answers.size > ANSWERS) this.answers.delete(this.answers.keys().next().value ?? "");
    return answer;
  }

  /** A question about what is shown. @param {string} ask @param {Partial<State>} [more] @returns {Question} */
  question(ask, more = {}) {
    const s = { ...this.state, ...more };
    const question = /** @type {Question} */ ({ ask, picture: s.picture, target: s.target, against: s.against });
    if (ask === "open") return question;
    if (this.opened) [question.target, question.against] = [this.opened.target.index, this.opened.against.index];
    question.on = s.on;
    if (ask === "bias" || ask === "check") return question;
    Object.assign(question, { partition: s.partition, layers: s.layers });
    if (ask === "paths" || s.root.startsWith("found:")) Object.assign(question, { search: s.search, numbers: s.numbers });
    if (ask === "paths") return question;
    return { ...question, width: s.width, root: s.root, path: s.path };
  }

  // --- moving

  /** Change the state, the link and what is shown. @param {Partial<State>} changes */
  go(changes) {
    Object.assign(this.state, changes);
    if (this.host.linked) {
      const link = `#${toLink(this.state)}`;
      if (link !== location.hash) history.pushState(null, "", link);
    }
    return this.show();
  }

  /** Change how maps look. @param {Partial<State>} changes */
  look(changes) {
    Object.assign(this.state, changes);
    this.relink();
    this.controls();
    cancelAnimationFrame(this.frame ?? 0);
    this.frame = requestAnimationFrame(() => this.repaint());
  }

  /** The names of the panels that are open, or will be once one is pressed. @param {HTMLDetailsElement} [pressed] */
  openPanels(pressed) {
    const panels = Object.entries(/** @type {NonNullable<typeof this.parts>} */ (this.parts).panels);
    return panels.filter(([, panel]) => panel.open !== (panel === pressed)).map(([name]) => name).join(".");
  }

  /** A panel was opened or closed. */
  toggled() {
    const panels = /** @type {NonNullable<typeof this.parts>} */ (this.parts).panels;
    this.state.open = this.openPanels();
    this.relink();
    if (panels.bias.open) this.showBias(this.turn);
  }

  /** The link of the state, in place of the one that is there. */
  relink() {
    if (this.host.linked && this.state.picture !== "") history.replaceState(null, "", `#${toLink(this.state)}`);
  }

  repaint() {
    for (const [name, group] of this.groups) {
      if (group.members.some(({ canvas }) => canvas.isConnected)) {
        group.paint(this.photo, this.state).then(() => this.legend(name, group));
      } else this.groups.delete(name);
    }
  }

  /** @param {string} name @param {{canvas: HTMLCanvasElement, map: WireMap | null, scaled?: boolean}[]} members */
  group(name, members) {
    const shown = members.flatMap(({ canvas, map, scaled }) => (map ? [{ canvas, map, scaled: scaled ?? true }] : []));
    const group = new Group(shown);
    for (const [other, { members: [first] }] of this.groups) if (!first?.canvas.isConnected) this.groups.delete(other);
    this.groups.set(name, group);
    return group.paint(this.photo, this.state).then(() => this.legend(name, group));
  }

  // --- showing

  async show() {
    const turn = ++this.turn, p = this.parts;
    if (!p) return;
    p.view.hidden = this.state.picture === "";
    p.empty.hidden = this.state.picture !== "";
    if (this.state.picture === "") return this.busy(false);
    this.controls();
    this.busy(true);
    if (p.columns.children.length === 0) p.columns.append(this.skeleton(""));
    try {
      const opened = /** @type {Opened} */ (await this.ask(this.question("open")));
      if (turn !== this.turn) return;
      this.shown = keyOf(this.question("open"));
      this.open(opened);
      this.crumbs();
      const next = this.ask(this.question("node", { path: this.deepest() }));
      await Promise.race([next.catch(() => null), new Promise((done) => setTimeout(done, AT_ONCE))]);
      if (turn !== this.turn) return;
      p.view.toggleAttribute("data-old", false);
      this.keepFound();
      this.startStrip();
      await this.showColumns(turn, next);
      if (turn === this.turn) this.message("");
      await Promise.all([this.showStrip(turn), this.showCut(turn), this.showPins(turn)]);
      if (turn !== this.turn) return;
      if (p.panels.bias.open) this.showBias(turn);
      setTimeout(() => turn === this.turn && this.check(turn), AT_REST);
    } catch (error) {
      if (turn === this.turn) this.refused(error);
    } finally {
      if (turn === this.turn) this.busy(false);
    }
  }

  /** @param {boolean} busy */
  busy(busy) {
    if (!busy) {
      clearTimeout(this.slow);
      this.slow = undefined;
      this.toggleAttribute("data-slow", false);
    } else this.slow ??= setTimeout(() => this.toggleAttribute("data-slow", true), SLOW);
    this.toggleAttribute("data-busy", busy);
    this.setAttribute("aria-busy", String(busy));
  }

  /** @param {unknown} error */
  fail(error) {
    const text = error instanceof Error ? error.message : String(error);
    this.message(error instanceof Deeper ? `Not in this file. To see it: ${text}` : text, true);
  }

  /** What is not answered shows no older number. @param {unknown} error */
  refused(error) {
    const p = this.parts;
    if (!p) return;
    for (const role of ROLES) if (p.strip[role].button.classList.contains("waiting")) this.tell(role, null, scaleOf([]), [], "");
    p.after.replaceChildren();
    p.after.hidden = true;
    p.view.toggleAttribute("data-old", keyOf(this.question("open")) !== this.shown);
    if (this.shown === undefined && this.hello?.adds) [p.view.hidden, p.empty.hidden] = [true, false];
    this.pictures();
    this.fail(error);
  }

  /** @param {string} text @param {boolean} [wrong] */
  message(text, wrong = false) {
    const p = this.parts;
    if (!p) return;
    p.alert.textContent = text;
    p.alert.hidden = text === "";
    p.alert.classList.toggle("wrong", wrong);
  }

  /** @param {string} text */
  say(text) {
    const p = this.parts;
    if (!p) return;
    p.status.textContent = text;
    clearTimeout(this.said);
    this.said = setTimeout(() => (p.status.textContent = ""), 2500);
  }

  /** What does not change with the picture. */
  greet() {
    const p = this.parts, hello = this.hello;
    if (!p || !hello) return;
    p.model.textContent = hello.model;
    p.upload.hidden = !(hello.adds && this.host.upload);
    p.scene.hidden = !hello.draws || !this.host.upload;
    p.fixed.hidden = this.host.command === undefined;
    this.pictures();
    const partitions = Object.fromEntries(hello.partitions.map((name) => [name, PRESET[/** @type {keyof typeof PRESET} */ (name)] ?? name]));
    choices(p.partition, partitions, this.state.partition);
    choices(p.search, Object.fromEntries(Object.keys(hello.searches).map((name) => [name, name])), this.state.search);
    p.names.replaceChildren(...hello.classes.map((name) => h("option", { value: name })));
    const still = this.host.command !== undefined;
    for (const control of [p.partition, p.count, p.width, p.layers]) control.disabled = still;
    for (const control of [p.another, p.jump, p.panels.search]) control.hidden = still;
    this.controls();
  }

  /** Bring what is set into line with the state, which a link or a pin may have changed. */
  controls() {
    const p = this.parts, s = this.state;
    if (!p) return;
    const [kind, count] = s.partition.split(":"), one = /** @type {HTMLElement} */ (p.count.parentElement);
    one.hidden = count === undefined;
    p.partition.value = count === undefined ? s.partition : `${kind}:N`;
    if (count !== undefined) {
      p.count.value = count;
      /** @type {HTMLElement} */ (one.firstElementChild).textContent = kind;
      p.count.setAttribute("aria-label", kind);
    }
    p.width.value = String(s.width);
    p.layers.value = s.layers ?? "";
    for (const [name, control] of Object.entries(p.looks)) control.value = String(s[/** @type {"sign"} */ (name)]);
    if (s.root.startsWith("found:")) {
      this.planned = { search: s.search, numbers: s.numbers };
      p.search.value = s.search;
    }
    this.numbersOf();
    for (const [name, panel] of Object.entries(p.panels)) panel.open = s.open.split(".").includes(name);
    this.toggleAttribute("data-dark", s.theme === "dark");
    this.toggleAttribute("data-light", s.theme === "light");
  }

  /** @param {Opened} opened */
  open(opened) {
    const p = this.parts;
    if (!p || this.opened === opened) return;
    this.opened = opened;
    const { picture } = opened, [rows, columns] = opened.rows[0].map.shape;
    this.style.setProperty("--ratio", String(Math.max(0.8, Math.min(4, columns / rows))));
    if (this.photoOf !== picture.image) {
      this.photoOf = picture.image;
      this.photo = picture.image ? pixelsOf(picture.image).catch(() => null) : Promise.resolve(null);
      p.photo.hidden = picture.image === null;
      this.photo.then((pixels) => pixels && paint(p.photo, null, [1, 1], pixels, 1, this.state));
    }
    this.pictures(picture);
    p.pictures.title = picture.name;
    p.notes.replaceChildren(...[...(this.hello?.notes ?? []), ...picture.notes].map((note) => h("li", {}, note)));
    p.units.replaceChildren(...Object.keys(opened.layers).reverse().map((name) => h("option", { value: `${name}:` })));
    const other = opened.best.filter((s) => s.index !== opened.target.index && s.index !== opened.against.index);
    const scores = [opened.target, opened.against, ...other].sort((a, b) => b.logit - a.logit);
    refill(p.classes, scores.map((score) => this.score(score, opened)));
    document.title = this.host.linked ? `${opened.target.name} \u2013 relupath` : document.title;
  }

  /** The pictures to choose from. @param {{id: string, name: string}} [shown] */
  pictures(shown) {
    const all = new Map([...(this.hello?.pictures ?? []).toReversed(), ...(shown ? [shown] : [])].map(({ id, name }) => [id, name]));
    const names = Object.fromEntries([...all].map(([id, name]) => [id, name.split(/[\\/]/).at(-1) ?? name]));
    if (this.parts) choices(this.parts.pictures, names, shown?.id ?? this.state.picture);
  }

  /** @param {Score} score @param {Opened} opened */
  score(score, opened) {
    const choose = (/** @type {"target" | "against"} */ role) => {
      const mine = { target: opened.target.index, against: opened.against.index };
      const other = role === "target" ? "against" : "target";
      const changes = { [role]: score.index, ...(mine[other] === score.index ? { [other]: mine[role] } : {}) };
      this.go({ target: mine.target, against: mine.against, ...changes, path: [], cut: false });
    };
    const button = (/** @type {"target" | "against"} */ role, /** @type {string} */ text) =>
      h("button", {
        type: "button", class: "role", "aria-pressed": String(opened[role].index === score.index), title: `${text} ${score.name}`,
        "aria-label": `${text} ${score.name}`, onclick: () => choose(role), disabled: this.host.command !== undefined,
      }, role === "target" ? "why" : "why not");
    const bar = h("span", { class: "bar" });
    bar.style.setProperty("--share", String(score.probability));
    return h("li", { class: opened.target.index === score.index ? "chosen" : null },
      h("span", { class: "name", title: score.name }, score.name), h("span", { class: "number" }, percent(score.probability)),
      bar, button("target", "why"), button("against", "why not"));
  }

  /** The names of what is taken apart. @param {Opened} opened @returns {Record<string, string>} */
  titles(opened) {
    const [t, a] = [opened.target.name, opened.against.name];
    return { target: t, against: a, contrast: `${t} ${MINUS} ${a}` };
  }

  /** The strip before all of it is there: names, and the map that the click was on. */
  startStrip() {
    const p = this.parts, opened = this.opened, { path, on } = this.state;
    if (!p || !opened) return;
    const titles = this.titles(opened);
    for (const role of ROLES) {
      const figure = p.strip[role];
      figure.name.textContent = figure.name.title = titles[role];
      figure.button.setAttribute("aria-pressed", String(role === on));
      figure.button.classList.add("waiting");
    }
    const column = /** @type {HTMLElement | undefined} */ (p.columns.children[path.length - 1]);
    const asked = keyOf(this.question("node", { path: path.slice(0, -1) }));
    const above = column?.dataset.key === asked ? this.seen.get(column) : undefined;
    const share = above?.children.find((child) => child.key === path.at(-1));
    if (share) {
      const scale = scaleOf([share.value, share.weight_part]);
      this.tell(on, share, scale, printedOf(share, scale));
      this.group("strip", [{ canvas: p.strip[on].canvas, map: share.map }]);
    }
  }

  /** One figure of the strip. @param {string} role @param {Row | Share | null} row @param {{factor: number, digits: number, exponent: number}} scale @param {number[]} printed @param {string} [missing] */
  tell(role, row, scale, printed, missing = "only units have a map for each class") {
    const p = this.parts, opened = this.opened;
    if (!p || !opened) return;
    const { button, value, parts, canvas } = p.strip[role], title = this.titles(opened)[role];
    button.classList.remove("waiting");
    button.classList.toggle("nothing", row === null || row.map === null);
    button.dataset.value = row ? String(row.value) : "";
    const [whole, weights, constants] = printed.map((number) => told(number, scale));
    value.textContent = row ? whole + times(scale) : "\u2013";
    const nothing = row !== null && row.value === 0 && row.weight_part === 0 && role !== "contrast";
    parts.textContent = nothing ? "nothing of it passes here" : row ? partsOf(weights, constants) : missing;
    canvas.setAttribute("aria-label", row ? `map of what the pixels add to ${title}: ${alone(row.value)}` : "no map");
  }

  /** Target, the other class and contrast, for the path that is chosen. @param {number} turn */
  async showStrip(turn) {
    const p = this.parts, opened = this.opened, { root, path } = this.state;
    if (!p || !opened) return;
    const last = path.at(-1);
    const silent = last === "bias" || last === "by-pass";
    const asked = silent ? null : path.length === 0 && root === "" ? opened.rows : (await this.ask(this.question("compare"))).rows;
    const above = silent ? /** @type {NodeAnswer} */ (await this.ask(this.question("node", { path: path.slice(0, -1) }))) : null;
    if (turn !== this.turn) return;
    /** @type {(Row | Share | null)[]} */
    const rows = ROLES.map((role, i) => asked ? asked[i] : role === this.state.on ? above?.children.find((c) => c.key === last) ?? null : null);
    const scale = scaleOf(rows.flatMap((row) => (row ? [row.value, row.weight_part] : [])));
    const printed = asked ? printedOfAll(asked, scale, this.state.on) : rows.map((row) => (row ? printedOf(row, scale) : []));
    rows.forEach((row, i) => this.tell(ROLES[i], row, scale, printed[i]));
    await this.group("strip", rows.map((row, i) => ({ canvas: p.strip[ROLES[i]].canvas, map: row ? row.map : null })));
  }

  /** The scale of the strip. @param {string} name @param {Group} group */
  legend(name, group) {
    const p = this.parts;
    if (!p || name !== "strip") return;
    const colours = table(this.state.colours), context = p.legend.getContext("2d");
    if (!context) return;
    const image = context.createImageData(511, 1);
    for (let i = 0; i < 511; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = colours[3 * i + c];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    p.low.textContent = alone(-group.end);
    p.high.textContent = `+${alone(group.end)}`;
    const { shape, step } = group.members[0]?.map ?? { shape: /** @type {[number, number]} */ ([1, 1]), step: 1 };
    const side = step * grainOf(shape, this.state.grain);
    p.clipped.textContent = `${side === 1 ? "a pixel" : `${side} \u00d7 ${side} pixels`}, clipped at percentile ${this.state.clip}`;
  }

  /** From the decision to the path that is chosen. */
  crumbs() {
    const p = this.parts, opened = this.opened, { root, path } = this.state;
    if (!p || !opened) return;
    const crumb = (/** @type {string} */ name, /** @type {Partial<State>} */ to, /** @type {boolean} */ current, text = name) =>
      h("li", {}, h("button", { type: "button", title: name, "aria-current": current ? "true" : null, onclick: () => this.go({ ...to, cut: false }) }, text));
    const whole = this.titles(opened)[this.state.on];
    const items = [crumb(whole, { root: "", path: [] }, root === "" && path.length === 0)];
    if (root !== "") items.push(crumb(root.startsWith("found:") ? `${this.state.search}, path ${Number(root.slice(6)) + 1}` : root, { path: [] }, path.length === 0));
    path.forEach((key, i) => items.push(crumb(key, { path: path.slice(0, i + 1) }, i === path.length - 1, short(key))));
    refill(p.crumbs, items);
    const unit = (path.length > 0 || root !== "") && !["bias", "by-pass"].includes(path.at(-1) ?? "");
    p.cut.disabled = !unit || this.host.command !== undefined;
    p.cut.setAttribute("aria-pressed", String(this.state.cut));
    p.pin.disabled = !unit;
  }

  /** The way to the node whose shares are the last column. */
  deepest() {
    const { path } = this.state, last = path.at(-1);
    return last === "bias" || last === "by-pass" ? path.slice(0, -1) : path;
  }

  /** The shares below each node on the way down. @param {number} turn @param {Promise<NodeAnswer>} last of the last column */
  async showColumns(turn, last) {
    const p = this.parts, path = this.deepest(), count = path.length + 1;
    if (!p) return;
    const before = p.columns.children.length;
    const held = [...p.columns.children].findIndex((column) => column.contains(focused(this)));
    const work = [];
    for (let depth = 0; depth < count; depth++) {
      const question = this.question("node", { path: path.slice(0, depth) }), key = keyOf(question);
      let column = /** @type {HTMLElement | undefined} */ (p.columns.children[depth]);
      if (column?.dataset.key !== key) {
        const fresh = this.skeleton(key);
        if (column) column.replaceWith(fresh);
        else p.columns.append(fresh);
        column = fresh;
      }
      work.push(this.fill(column, depth < count - 1 ? this.ask(question) : last, question.path, turn));
    }
    while (p.columns.children.length > count) p.columns.lastElementChild?.remove();
    await Promise.all(work);
    if (count > before && turn === this.turn) {  // now, as a moving page would slow what it waits for
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      p.columns.scrollTo({ left: p.columns.scrollWidth, behavior: calm ? "instant" : "smooth" });
    }
    if (held < 0 || turn !== this.turn || this.contains(focused(this))) return;
    /** @type {HTMLElement | null} */
    const row = p.columns.children[Math.min(held, count - 1)].querySelector('button[tabindex="0"]');
    row?.focus({ preventScroll: true });
  }

  /** A column before its numbers are there. @param {string} key */
  skeleton(key) {
    const rows = Array.from({ length: Math.min(this.state.width + 2, 12) }, () => h("li", { class: "ghost" }));
    return h("section", { class: "column", "data-key": key, "aria-label": "computing" },
      h("header", {}, h("h3", {}, "\u00a0"), h("p", {}, "\u00a0")), h("ol", {}, ...rows), h("footer", {}, "\u00a0"));
  }

  /** @param {HTMLElement} column @param {Promise<NodeAnswer>} asked @param {string[]} way @param {number} turn */
  async fill(column, asked, way, turn) {
    /** @type {NodeAnswer} */
    let answer;
    try {
      answer = await asked;
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      const again = h("button", { type: "button", onclick: () => this.show() }, "Try again");
      column.replaceChildren(error instanceof Deeper
        ? h("div", { class: "deeper" }, h("p", {}, "This lies deeper than this file goes. To see it:"), h("code", {}, text))
        : h("div", { class: "deeper wrong" }, h("p", {}, text), again));
      column.dataset.key = "";
      column.setAttribute("aria-label", "not shown");
      return;
    }
    if (turn !== this.turn) return;
    this.seen.set(column, answer);
    const chosen = this.state.path[way.length];
    if (column.dataset.filled !== "yes") this.rows(column, answer, way);
    for (const button of column.querySelectorAll("button")) {
      const mine = button.dataset.key === chosen;
      button.setAttribute("aria-expanded", String(mine));
      button.tabIndex = mine || (chosen === undefined && button === column.querySelector("button")) ? 0 : -1;
    }
  }

  /** @param {HTMLElement} column @param {NodeAnswer} answer @param {string[]} prefix */
  rows(column, answer, prefix) {
    const { node, children, left_out: leftOut } = answer;
    const without = prefix.length === 0 && leftOut.length ? `Not split at ${leftOut.join(", ")}: no unit there is for both classes.` : "";
    const layers = [...new Set(children.filter((c) => c.kind === "path").map((c) => c.layer ?? ""))];
    const { common, own } = apart(layers);
    const scale = scaleOf([node.value, ...children.map((c) => c.value)]);
    const most = Math.max(...children.map((c) => Math.abs(c.value)), 1e-300);
    const title = children.length === 0 ? "nothing below" : layers.join(" | ") || "below";
    const head = layers.length > 1 ? [common, `${layers.length} layers`].filter(Boolean).join(" \u00b7 ") : title;
    /** @type {{canvas: HTMLCanvasElement, map: WireMap | null, scaled: boolean}[]} */
    const members = [];
    const axes = layers.length === 1 ? this.opened?.layers[layers[0]] : undefined, shape = axes ? ` of ${axes.join(" \u00d7 ")}` : "";
    const sum = children.reduce((total, c) => total + c.value, 0);
    const size = children.reduce((total, c) => total + Math.abs(c.value), Math.abs(node.value));
    const adds = Math.abs(sum - node.value) <= 1e-4 * size, total = Math.abs(sum - node.value) < unitOf(scale) / 2 ? node.value : sum;
    const printed = adding(children.map((c) => c.value), total, scale);
    const items = children.map((share, i) => {
      const canvas = h("canvas", { class: "thumb", width: 1, height: 1, role: "img", "aria-label": share.map ? "its map" : "no map" });
      members.push({ canvas, map: share.map, scaled: share.kind === "path" });
      const bar = h("span", { class: share.value < 0 ? "bar less" : "bar" });
      bar.style.setProperty("--share", String(Math.abs(share.value) / most));
      const name = nameOf(share, own), [weights, constants] = adding([share.weight_part, share.bias], printed[i], scale);
      return h("li", {}, h("button", {
        type: "button", class: `share ${share.kind}`, "data-key": share.key, "data-value": share.value,
        title: `${share.key}: ${share.value}`,
        onclick: () => this.choose(prefix, share.key),
      }, canvas, h("span", { class: "unit" }, name), h("span", { class: "number" }, told(printed[i], scale)), bar,
      h("span", { class: "parts" }, share.kind === "bias" ? "constants, no map" : partsOf(told(weights, scale), told(constants, scale)))));
    });
    column.replaceChildren(
      h("header", {}, h("h3", { title }, head), h("p", {}, `${told(node.value, scale)}${times(scale)} is the sum of`)),
      h("ol", {}, ...items),
      h("footer", { "data-sum": sum, "data-value": node.value, class: adds ? null : "wrong" },
        children.length === 0 ? "Here the path ends."
          : h("span", {}, `${children.length === 1 ? "1 share" : `${children.length} shares`}${shape}`), h("span", { class: "number" }, children.length ? `\u03a3 ${told(total, scale)}` : ""),
        without ? h("p", { title: "Under Units, layers: all shows it" }, without) : null));
    column.dataset.filled = "yes";
    column.setAttribute("aria-label", `shares on ${title}`);
    this.group(`column ${column.dataset.key}`, members);
  }

  /** @param {string[]} prefix @param {string} key */
  choose(prefix, key) {
    const open = this.state.path[prefix.length] === key;
    const deeper = this.state.path.length > prefix.length + 1;
    return this.go({ path: open && !deeper ? prefix : [...prefix, key], cut: false });
  }

  /** What becomes of the output without the unit. @param {number} turn */
  async showCut(turn) {
    const p = this.parts, opened = this.opened;
    if (!p || !opened) return;
    p.after.hidden = !this.state.cut;
    if (!this.state.cut) return;
    p.after.replaceChildren(h("p", {}, "Running the model without the unit\u2026"));
    const cut = /** @type {Cut} */ (await this.ask(this.question("cut")));
    if (turn !== this.turn) return;
    const scale = scaleOf([cut.value, cut.ablated, cut.without_path]);
    const after = new Map(cut.after.map((score) => [score.index, score]));
    const logits = scaleOf([...cut.before, ...cut.after].map((score) => score.logit));
    const rows = cut.before.map((score) => {
      const cells = [score, after.get(score.index)].flatMap((one) => {
        const bar = h("span", { class: "bar" });
        bar.style.setProperty("--share", String(one?.probability ?? 0));
        return [h("td", { class: "number" }, one ? told(one.logit, logits) : "\u2013"),
          h("td", {}, h("span", { class: "number" }, one ? percent(one.probability) : "\u2013"), bar)];
      });
      return h("tr", { class: score.index === cut.predicted ? "chosen" : null }, h("th", { scope: "row" }, score.name), ...cells);
    });
    const predicted = told(cut.without_path, scale), moved = predicted === told(cut.ablated, scale) ? "" : "; the rest is gates that move";
    p.after.replaceChildren(
      h("h2", { title: cut.cut }, `Without ${short(cut.cut)}`),
      h("p", { class: "numbers" },
        `${this.titles(opened)[this.state.on]} ${told(cut.value, scale)} \u2192 `, h("strong", {}, told(cut.ablated, scale)), times(scale),
        ` (its share predicts ${predicted}${moved})`),
      h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "classes before and after" }, h("table", {}, h("thead", {}, h("tr", {}, ...["class", `logit before${times(logits)}`, "probability", "logit after", "probability"].map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, ...rows))));
  }

  /** Paths kept for comparison, on one scale. @param {number} turn */
  async showPins(turn) {
    const p = this.parts;
    if (!p) return;
    p.pins.hidden = this.state.pins.length === 0;
    const key = JSON.stringify(this.state.pins);
    if (p.pinned.dataset.key === key) return;
    const asked = await Promise.all(this.state.pins.map(async (pin) => {
      try {
        const question = { ...ASKED, ...JSON.parse(pin) };
        return [{ pin, question, answer: /** @type {NodeAnswer} */ (await this.ask(question)) }];
      } catch (error) {
        this.fail(error);
        return [];
      }
    }));
    const answers = asked.flat();
    if (turn !== this.turn) return;
    const scale = scaleOf(answers.map(({ answer }) => answer.node.value));
    /** @type {{canvas: HTMLCanvasElement, map: WireMap | null}[]} */
    const members = [];
    refill(p.pinned, answers.map(({ pin, question, answer }) => {
      const { ask: _, seed: __, root, path, ...others } = question;
      const canvas = h("canvas", { role: "img", "aria-label": "map of a pinned path" });
      members.push({ canvas, map: answer.node.map });
      const way = [root.startsWith("found:") ? `${question.search}, path ${Number(root.slice(6)) + 1}` : root, ...path].filter(Boolean);
      const [t, a] = [question.target, question.against].map((c) => this.hello?.classes[c] ?? `class ${c}`);
      const title = { target: t, against: a, contrast: `${t} ${MINUS} ${a}` }[/** @type {"target"} */ (question.on)];
      const unit = short(way.at(-1) ?? "whole"), name = `${way.join(" \u203a ") || "whole"}, ${title}`;
      return h("li", {}, h("button", { type: "button", class: "map", onclick: () => this.go({ ...others, root, path, cut: false }) }, canvas,
        h("span", { class: "unit", title: name }, unit), h("span", { class: "quiet" }, title), h("span", { class: "number" }, `${told(answer.node.value, scale)}${times(scale)}`)),
      h("button", { type: "button", class: "remove", "aria-label": `unpin ${name}`, onclick: () => this.go({ pins: this.state.pins.filter((one) => one !== pin) }) }, "\u00d7"));
    }));
    p.pinned.dataset.key = key;
    await this.group("pins", members);
  }

  /** Where the bias enters. @param {number} turn */
  async showBias(turn) {
    const p = this.parts, opened = this.opened, question = this.question("bias"), key = keyOf(question);
    if (!p || !opened || p.biases.dataset.key === key) return;
    p.biases.classList.add("waiting");
    try {
      const bias = await this.ask(question);
      if (turn !== this.turn) return;
      p.biases.dataset.key = key;
      /** @type {{layer: string, value: number}[]} */
      const layers = bias.layers;
      const total = layers.reduce((sum, { value }) => sum + value, 0);
      const scale = scaleOf([total, ...layers.map(({ value }) => value)]);
      const most = Math.max(...layers.map(({ value }) => Math.abs(value)), 1e-300);
      const canvas = h("canvas", { role: "img", "aria-label": "where the bias lies" });
      const printed = adding(layers.map(({ value }) => value), total, scale);
      const items = layers.map(({ layer, value }, i) => {
        const bar = h("span", { class: value < 0 ? "bar less" : "bar" });
        bar.style.setProperty("--share", String(Math.abs(value) / most));
        return h("li", { "data-value": value }, h("span", { class: "unit", title: layer }, layer === "output" ? "above the last layer" : layer), h("span", { class: "number" }, told(printed[i], scale)), bar);
      }).reverse();
      p.biases.replaceChildren(h("div", { class: "map" }, canvas), h("div", {},
        h("p", {}, `All constants together add ${told(total, scale)}${times(scale)} to ${this.titles(opened)[this.state.on]}; ${told(bias.unplaced, scale)} of it has no place in the picture. By the layer below which they enter:`),
        h("ol", { class: "layers" }, ...items)));
      await this.group("bias", [{ canvas, map: bias.map }]);
    } catch (error) {
      if (turn !== this.turn) return;
      p.biases.dataset.key = "";
      p.biases.replaceChildren(this.refusal(error));
    }
    p.biases.classList.remove("waiting");
  }

  /** Paths that a search finds. */
  async findPaths() {
    const p = this.parts;
    if (!p) return;
    const { ask: _, ...asked } = this.question("paths", this.planned), key = keyOf({ ask: "paths", ...asked });
    if (this.searching && p.found.dataset.key === key) return;
    this.searching?.abort();
    const mine = this.searching = new AbortController(), began = performance.now(), seconds = h("span", { class: "number" });
    const tick = setInterval(() => (seconds.textContent = `${Math.floor((performance.now() - began) / 1000)} s`), 1000);
    p.found.dataset.key = key;
    p.found.replaceChildren(h("div", { class: "searching" }, h("p", { role: "status" }, "Searching\u2026"), seconds, h("button", { type: "button", onclick: () => mine.abort() }, "Cancel")),
      h("p", { class: "quiet" }, asked.search === "exact" ? "Through many layers, proving that no path is better can take minutes, or more than is allowed: name a few neighbouring layers under Units. " : "", "Meanwhile the rest of the page goes on."));
    try {
      const found = /** @type {Found} */ (await this.ask({ ask: "paths", ...asked }, mine.signal));
      if (p.found.dataset.key !== key) return;
      /** @type {{canvas: HTMLCanvasElement, map: WireMap | null}[]} */
      const members = [];
      const items = found.paths.map((share, i) => {
        const canvas = h("canvas", { role: "img", "aria-label": "map of a found path" });
        members.push({ canvas, map: share.map });
        return h("li", {}, h("button", { type: "button", class: "map", title: share.key, onclick: () => this.go({ ...asked, root: `found:${i}`, path: [], cut: false }) },
          canvas, h("span", { class: "unit" }, short(share.name ?? share.key)), h("span", { class: "number" }, `${alone(share.value)}`)));
      });
      const held = found.held === null ? "" : ` In all ${alone(100 * found.held)} % of the value.`;
      const what = found.several ? `${found.paths.length} paths.` : "One path, from thin to deep.";
      p.found.replaceChildren(h("p", { class: "quiet" }, `${what} It ended: ${found.stopped}.${held}`), h("ul", { class: "tray" }, ...items));
      for (const [i, member] of members.entries()) this.group(`found ${i}`, [member]);
    } catch (error) {
      if (p.found.dataset.key !== key) return;
      p.found.replaceChildren(mine.signal.aborted ? h("p", { class: "quiet" }, "Cancelled.") : this.refusal(error));
    } finally {
      clearInterval(tick);
      if (this.searching === mine) this.searching = undefined;
    }
  }

  /** Take away what was found for another class, picture or kind of unit; find again what a link begins at. */
  keepFound() {
    const p = this.parts, { root } = this.state;
    if (!p) return;
    const key = p.found.dataset.key;
    if (key === undefined && root.startsWith("found:")) {
      p.panels.search.open = true;
      this.findPaths();
    } else if (key !== undefined && key !== "") {
      const { search, numbers } = JSON.parse(key);
      if (key === keyOf(this.question("paths", { search: search ?? ASKED.search, numbers: numbers ?? {} }))) return;
      p.found.dataset.key = "";
      p.found.replaceChildren();
      this.searching?.abort();
    }
  }

  /** @param {unknown} error */
  refusal(error) {
    const text = error instanceof Error ? error.message : String(error);
    return error instanceof Deeper ? h("div", { class: "deeper" }, h("p", {}, "Not in this file. To see it:"), h("code", {}, text)) : h("p", { class: "wrong" }, text);
  }

  /** Say that the numbers add up, or do not. @param {number} turn */
  async check(turn) {
    const p = this.parts;
    if (!p) return;
    const question = this.question("check"), key = keyOf(question);
    if (p.checked.dataset.key === key) return;
    p.checked.textContent = p.checked.dataset.key = "";
    try {
      const { error, tolerance } = await this.ask(question);
      if (turn !== this.turn) return;
      const power = (/** @type {number} */ size) => (size === 0 ? "0" : `${size.toExponential(0).replace(/e.*/, "")} \u00d7 10${raised(Number(size.toExponential(0).split("e")[1]))}`);
      p.checked.textContent = `The weights and every constant of the network add up to this output by two independent routes, to a relative error of ${power(error)} (allowed: ${power(tolerance)}).`;
      p.checked.dataset.key = key;
    } catch (error) {
      if (turn === this.turn && !(error instanceof Deeper)) p.checked.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  // --- what a person does

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (target !== document.body && !this.contains(target)) return;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog[open]")) return;
    const p = this.parts;
    if (!p) return;
    /** @type {Record<string, () => void>} */
    const does = {
      ArrowDown: () => this.step(target, 1), ArrowUp: () => this.step(target, -1),
      ArrowRight: () => this.deeper(target), ArrowLeft: () => this.back(target),
      1: () => p.strip.target.button.click(), 2: () => p.strip.against.button.click(), 3: () => p.strip.contrast.button.click(),
      c: () => p.cut.disabled || p.cut.click(), p: () => p.pin.disabled || p.pin.click(),
      "/": () => p.jump.focus(), "?": () => p.help.showModal(),
    };
    const arrow = event.key.startsWith("Arrow");
    if (does[event.key] === undefined || (arrow && !target.closest(".column"))) return;
    event.preventDefault();
    does[event.key]();
  }

  /** @param {HTMLElement} from @param {number} by */
  step(from, by) {
    const rows = [...(from.closest("ol")?.querySelectorAll("button") ?? [])];
    rows[rows.indexOf(/** @type {HTMLButtonElement} */ (from)) + by]?.focus();
  }

  /** @param {HTMLElement} from */
  async deeper(from) {
    const column = from.closest(".column"), key = from.dataset.key;
    if (!column || key === undefined) return;
    const depth = [...(this.parts?.columns.children ?? [])].indexOf(column);
    if (this.state.path[depth] !== key) await this.go({ path: [...this.state.path.slice(0, depth), key], cut: false });
    /** @type {HTMLElement | null | undefined} */
    const next = this.parts?.columns.children[depth + 1]?.querySelector("ol button"), at = focused(this);
    if (at === from || at === null || at === document.body) next?.focus({ preventScroll: true });  // else the person has gone elsewhere
  }

  /** @param {HTMLElement} from */
  back(from) {
    const column = from.closest(".column")?.previousElementSibling;
    /** @type {HTMLElement | null | undefined} */
    const row = column?.querySelector('button[aria-expanded="true"]');
    row?.focus({ preventScroll: true });
    row?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Jump to `layer:unit`. @param {string} text */
  async jump(text) {
    const p = this.parts, before = { root: this.state.root, path: this.state.path, cut: this.state.cut };
    if (!p || text.trim() === "") return;
    const question = this.question("node", { root: text.trim(), path: [] });
    try {
      await this.ask(question);
      p.jump.setCustomValidity("");
      this.say(`opened ${text.trim()}`);
      await this.go({ root: text.trim(), path: [], cut: false });
    } catch (error) {
      Object.assign(this.state, before);
      this.fail(error);
    }
  }

  async pin() {
    const question = this.question("node"), pin = keyOf(question);
    try {
      await this.ask(question);
      const { pins } = this.state;
      this.say("pinned");
      await this.go({ pins: pins.includes(pin) ? pins : [...pins, pin].slice(-12) });
    } catch (error) {
      this.fail(error);
    }
  }

  /** @param {File | null | undefined} file */
  async upload(file) {
    if (!file || !this.host.upload) return;
    this.busy(true);
    this.say(`Reading ${file.name}\u2026`);
    try {
      const { picture } = await this.host.upload(file);
      await this.showPicture(picture);
    } catch (error) {
      this.fail(error);
      this.busy(false);
    }
  }

  /** @param {string} picture */
  async showPicture(picture) {
    this.answers.delete(keyOf({ ask: "hello" }));
    this.hello = await this.ask({ ask: "hello" });
    this.opened = null;
    await this.go({ picture, target: null, against: null, root: "", path: [], pins: [], cut: false });
  }

  async scene() {
    try {
      const seed = Math.floor(Math.random() * 1e6);
      await this.showPicture((await this.ask({ ask: "scene", seed })).picture);
    } catch (error) {
      this.fail(error);
    }
  }

  /** @param {Promise<string> | string} text @param {string} said */
  async copy(text, said) {
    const p = this.parts, words = await Promise.resolve(text).catch((error) => this.fail(error));
    if (!p || words === undefined) return;
    try {
      await navigator.clipboard.writeText(words);
      this.say(said);
    } catch {
      p.text.value = words;
      p.copied.showModal();
      p.text.select();
    }
  }

  async python() {
    const question = this.question("node");
    const answer = /** @type {NodeAnswer} */ (await this.ask(question));
    return answer.python ?? "# a bias and the routes around a layer have no linear model of their own";
  }

  /** All numbers that are open on the page, as they were answered. */
  async numbers() {
    const { path } = this.state;
    const nodes = await Promise.all(path.map((_, i) => i).concat(path.length).map((depth) => this.ask(this.question("node", { path: path.slice(0, depth) }))));
    const said = { state: this.state, open: this.opened, nodes };
    return new Blob([JSON.stringify(said, null, 1)], { type: "application/json" });
  }

  /** The three maps with their names and numbers, drawn twice as large. @returns {{width: number, height: number, draw: (context: OffscreenCanvasRenderingContext2D) => void}} */
  figure() {
    const p = /** @type {NonNullable<typeof this.parts>} */ (this.parts), side = 560, gap = 40, dark = this.dark();
    const width = 3 * side + 4 * gap, height = side + 260, ink = dark ? "#eee" : "#222";
    const draw = (/** @type {OffscreenCanvasRenderingContext2D} */ context) => {
      context.fillStyle = dark ? "#17171c" : "#fff";
      context.fillRect(0, 0, width, height);
      context.imageSmoothingEnabled = false;
      ROLES.forEach((role, i) => {
        const { canvas, name, value, parts } = p.strip[role], x = gap + i * (side + gap);
        const small = side / Math.max(canvas.width, canvas.height);
        context.drawImage(canvas, x, 110, small * canvas.width, small * canvas.height);
        context.fillStyle = ink;
        context.font = "600 32px system-ui, sans-serif";
        context.fillText(name.textContent ?? "", x, 90, side);
        context.fillText(value.textContent ?? "", x, side + 160, side);
        context.font = "24px system-ui, sans-serif";
        context.fillText(parts.textContent ?? "", x, side + 200, side);
      });
      context.font = "24px system-ui, sans-serif";
      context.fillText(this.trail(), gap, 44, width - 2 * gap);
      context.fillText(this.caption(), gap, side + 240, width - 2 * gap);
    };
    return { width, height, draw };
  }

  /** Of which photo maps are, and where their colours end. */
  caption() {
    const p = /** @type {NonNullable<typeof this.parts>} */ (this.parts), name = this.opened?.picture.name.split(/[\\/]/).at(-1) ?? "";
    return `${name}; colours from ${p.low.textContent} to ${p.high.textContent}; ${p.clipped.textContent}`;
  }

  trail() {
    return [...(this.parts?.crumbs.children ?? [])].map((item) => item.textContent).join(" \u203a ");
  }

  dark() {
    return getComputedStyle(this).colorScheme.includes("dark") && (this.state.theme === "dark" || (this.state.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches));
  }

  /** @param {"png" | "svg"} kind */
  async picture(kind) {
    const { width, height, draw } = this.figure(), p = this.parts;
    if (kind === "png") {
      const canvas = new OffscreenCanvas(width, height);
      draw(/** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d")));
      return canvas.convertToBlob({ type: "image/png" });
    }
    const space = "http://www.w3.org/2000/svg", page = document.implementation.createDocument(space, "svg"), svg = page.documentElement, ink = this.dark() ? "#eee" : "#222";
    const add = (/** @type {string} */ tag, /** @type {Record<string, any>} */ given, /** @type {string} */ text = "") => {
      const element = page.createElementNS(space, tag);
      for (const [name, value] of Object.entries(given)) element.setAttribute(name, String(value));
      element.textContent = text;
      svg.append(element);
    };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    add("rect", { width, height, fill: this.dark() ? "#17171c" : "#fff" });
    const words = { "font-family": "system-ui, sans-serif", fill: ink };
    add("text", { x: 40, y: 44, "font-size": 24, ...words }, this.trail());
    add("text", { x: 40, y: 800, "font-size": 24, ...words }, this.caption());
    ROLES.forEach((role, i) => {
      const { canvas, name, value, parts } = /** @type {NonNullable<typeof p>} */ (p).strip[role], x = 40 + i * 600;
      add("image", { x, y: 110, width: 560, height: 560, preserveAspectRatio: "xMidYMin meet", "image-rendering": "pixelated", href: canvas.toDataURL() });
      add("text", { x, y: 90, "font-size": 32, "font-weight": 600, ...words }, name.textContent ?? "");
      add("text", { x, y: 720, "font-size": 32, "font-weight": 600, ...words }, value.textContent ?? "");
      add("text", { x, y: 760, "font-size": 24, ...words }, parts.textContent ?? "");
    });
    return new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
  }

  /** @param {Promise<Blob>} made @param {string} ending */
  async save(made, ending) {
    try {
      const url = URL.createObjectURL(await made), name = this.opened?.picture.name.split(/[\\/]/).at(-1) ?? "relupath";
      h("a", { href: url, download: `${name.replace(/\.[a-z]+$/i, "")}.relupath.${ending}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
      this.say(`saved ${ending.toUpperCase()}`);
    } catch (error) {
      this.fail(error);
    }
  }

  numbersOf() {
    const p = this.parts, { search, numbers } = this.planned, names = this.hello?.searches[search] ?? [];
    if (!p) return;
    p.numbers.replaceChildren(...names.map((name) => {
      const input = h("input", {
        type: "number", step: "any", placeholder: "usual", value: numbers[name] ?? null, onchange: () => {
          const { [name]: _, ...others } = this.planned.numbers;
          this.planned.numbers = input.value === "" ? others : { ...others, [name]: Number(input.value) };
        },
      });
      return field(name, input);
    }));
  }

  // --- the frame, once

  build() {
    const set = (/** @type {Partial<State>} */ changes) => this.go({ ...changes, root: "", path: [], cut: false });
    const mine = ++views;
    const strip = /** @type {Record<string, {button: HTMLButtonElement, canvas: HTMLCanvasElement, name: HTMLElement, value: HTMLElement, parts: HTMLElement}>} */ ({});
    for (const role of ROLES) {
      const canvas = h("canvas", { role: "img", width: 1, height: 1 });
      const name = h("span", { class: "name" }), value = h("span", { class: "number" }), parts = h("span", { class: "parts" });
      const button = h("button", { type: "button", class: `map waiting ${role}`, onclick: () => role !== this.state.on && this.go({ on: role, path: [], cut: false, root: this.state.root.startsWith("found:") ? "" : this.state.root }) },
        name, canvas, value, parts);
      strip[role] = { button, canvas, name, value, parts };
    }
    const p = {
      strip,
      view: h("main", { class: "view", hidden: true }), model: h("span", { class: "model" }),
      alert: h("p", { class: "alert", role: "alert", hidden: true }), status: h("p", { class: "status", role: "status" }),
      pictures: h("select", { "aria-label": "photo", onchange: () => this.go({ picture: p.pictures.value, target: null, against: null, root: "", path: [], pins: [], cut: false }) }),
      jump: h("input", { type: "search", placeholder: "layer:unit", "aria-label": "jump to layer:unit", list: `relupath-units-${mine}`, autocomplete: "off", spellcheck: "false", onkeydown: (/** @type {KeyboardEvent} */ e) => e.key === "Enter" && this.jump(p.jump.value) }),
      units: h("datalist", { id: `relupath-units-${mine}` }), names: h("datalist", { id: `relupath-classes-${mine}` }),
      file: h("input", { type: "file", accept: "image/*", class: "away", "aria-label": "open another photo", tabindex: "-1", onchange: () => { this.upload(p.file.files?.[0]); p.file.value = ""; } }),
      upload: h("button", { type: "button", onclick: () => p.file.click() }, "Open photo\u2026"),
      scene: h("button", { type: "button", onclick: () => this.scene() }, "New scene"),
      empty: h("div", { class: "empty", hidden: true }, h("h2", {}, "Drop a photo here"), h("p", {}, "or paste one, or choose \u201cOpen photo\u201d. It stays on this machine.")),
      fixed: h("p", { class: "quiet", hidden: true }, "This is a report: classes, units and widths are fixed. What lies deeper is shown by the command beside it."),
      photo: h("canvas", { role: "img", width: 1, height: 1, "aria-label": "the photo as the network sees it" }),
      notes: h("ul", { class: "notes" }), classes: h("ul", { class: "classes" }),
      another: h("input", { list: `relupath-classes-${mine}`, placeholder: "another class", "aria-label": "compare with another class", onchange: () => { if (p.another.value) this.other(p.another.value); p.another.value = ""; } }),
      partition: h("select", { onchange: () => set({ partition: p.partition.value.replace("N", p.partition.value === "axis:N" ? "3" : "8") }) }),
      count: h("input", { type: "number", min: 1, onchange: () => set({ partition: p.partition.value.replace("N", String(Math.max(1, Math.round(Number(p.count.value)) || 1))) }) }),
      width: h("input", { type: "number", min: 1, max: 64, onchange: () => set({ width: widthOf(Number(p.width.value)) }) }),
      layers: h("input", { placeholder: "every:2, or all", title: "If nothing is given: all, but for those on top where no unit serves both classes", spellcheck: "false", onchange: () => set({ layers: p.layers.value.trim() || null }) }),
      search: h("select", { onchange: () => { this.planned = { search: p.search.value, numbers: {} }; this.numbersOf(); } }), numbers: h("div", { class: "fields" }),
      legend: h("canvas", { width: 511, height: 1, role: "img", "aria-label": "colours from against to for" }), low: h("span", { class: "number" }), high: h("span", { class: "number" }), clipped: h("span", { class: "quiet" }),
      crumbs: h("ol", { class: "crumbs" }), checked: h("p", { class: "quiet checked" }),
      cut: h("button", { type: "button", disabled: true, "aria-pressed": "false", title: "set the unit to zero and run the model (c)", onclick: () => this.go({ cut: !this.state.cut }) }, "Cut unit"),
      pin: h("button", { type: "button", disabled: true, title: "keep for comparison (p)", onclick: () => this.pin() }, "Pin"),
      after: h("section", { class: "panel after", hidden: true, "aria-live": "polite", "aria-label": "after the cut" }),
      columns: h("div", { class: "columns", tabindex: "0", role: "group", "aria-label": "the decision as a sum, layer by layer" }),
      pinned: h("ul", { class: "tray" }), pins: h("section", { class: "panel", hidden: true, "aria-label": "pinned paths" }),
      found: h("div", { class: "found" }), biases: h("div", { class: "biases" }),
      panels: { units: h("details", { class: "panel" }), colours: h("details", { class: "panel" }), search: h("details", { class: "panel" }), bias: h("details", { class: "panel" }) },
      looks: {
        sign: select({ both: "for and against", for: "for", against: "against" }, (sign) => this.look({ sign })),
        clip: slider(90, 100, 0.1, (clip) => this.look({ clip })),
        opacity: slider(0, 1, 0.05, (opacity) => this.look({ opacity })),
        colours: select(Object.fromEntries(Object.entries(COLOURS).map(([name, { text }]) => [name, text])), (colours) => this.look({ colours })),
        grain: select({ 0: "as it suits", 1: "1 pixel", 2: "2 \u00d7 2", 4: "4 \u00d7 4", 8: "8 \u00d7 8", 16: "16 \u00d7 16" }, (grain) => this.look({ grain: Number(grain) })),
        theme: select({ auto: "as the system", light: "light", dark: "dark" }, (theme) => this.look({ theme })),
      },
      help: h("dialog", { "aria-label": "keys" }), copied: h("dialog", { "aria-label": "text to copy" }), text: h("textarea", { rows: 12, readonly: true, "aria-label": "text to copy" }),
    };
    const menu = (/** @type {string} */ text, /** @type {() => void} */ run) => h("button", { type: "button", onclick: () => { run(); save.open = false; } }, text);
    const save = h("details", { class: "menu", onkeydown: (/** @type {KeyboardEvent} */ e) => { if (e.key === "Escape") { save.open = false; save.querySelector("summary")?.focus(); } } }, h("summary", {}, "Share"), h("div", {},
      this.host.linked ? menu("Copy link", () => this.copy(location.href, "link copied")) : null, menu("Copy as Python", () => this.copy(this.python(), "Python copied")),
      menu("Save PNG", () => this.save(this.picture("png"), "png")), menu("Save SVG", () => this.save(this.picture("svg"), "svg")), menu("Save JSON", () => this.save(this.numbers(), "json"))));
    const { units, colours, search, bias } = p.panels;
    units.append(h("summary", {}, "Units"), h("div", { class: "fields" }, field("unit", p.partition), field("heads", p.count), field("width", p.width), field("layers", p.layers)));
    colours.append(h("summary", {}, "Colours"), h("div", { class: "fields" },
      ...Object.entries(p.looks).map(([name, control]) => field(name === "theme" ? "page" : name, control))));
    bias.append(h("summary", {}, "Where the bias enters"), p.biases);
    for (const panel of Object.values(p.panels)) {
      panel.addEventListener("toggle", () => this.toggled());
      panel.addEventListener("click", (event) => {  // known at once: what is shown before "toggle" comes would close it again
        if (event.target instanceof Element && event.target.closest("summary")) this.state.open = this.openPanels(panel);
      });
    }
    p.pins.append(h("h2", {}, "Pinned paths, one scale"), p.pinned);
    p.help.append(h("h2", {}, "Keys"), h("dl", {}, ...HELP.flatMap(([keys, does]) => [h("dt", {}, keys), h("dd", {}, does)])),
      h("p", { class: "quiet" }, "Printed numbers are rounded so that they add up as printed; a share\u2019s tooltip gives its number in full. In the names of units c, y and x are the first, second and third axis of the layer, whose shape stands below its column: features may be the last one."), h("form", { method: "dialog" }, h("button", {}, "Close")));
    p.copied.append(h("h2", {}, "Copy this"), p.text, h("form", { method: "dialog" }, h("button", {}, "Close")));
    search.append(h("summary", {}, "Search for paths"), h("div", { class: "fields" }, field("search", p.search), p.numbers,
      h("button", { type: "button", onclick: () => this.findPaths() }, "Find paths")), p.found);
    p.view.append(
      h("aside", { "aria-label": "photo, classes and settings" },
        h("div", { class: "map photo" }, p.photo), p.notes, h("h2", {}, "Classes"), p.classes, p.another, p.fixed,
        units, colours),
      h("div", { class: "work" },
        h("section", { class: "strip", "aria-label": "what speaks for each class" }, ...ROLES.map((role) => strip[role].button)),
        h("div", { class: "legend" }, p.low, p.legend, p.high, p.clipped),
        h("nav", { class: "trail", "aria-label": "the path" }, p.crumbs, h("div", { class: "does" }, p.cut, p.pin)),
        p.after, p.columns, p.checked, p.pins,
        search, bias));
    this.append(
      h("header", { class: "top" }, h("h1", {}, "relupath"), p.pictures, p.model, h("span", { class: "space" }), p.jump, p.units, p.names, p.scene, p.upload, p.file, save,
        h("button", { type: "button", "aria-label": "keys", onclick: () => p.help.showModal() }, "?")),
      p.alert, p.empty, p.view, p.status, p.help, p.copied);
    this.addEventListener("click", (event) => { if (!event.composedPath().includes(save)) save.open = false; });
    if (this.host.upload) {
      const dragged = (/** @type {DragEvent} */ event, /** @type {boolean} */ over) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        this.toggleAttribute("data-drop", over);
      };
      document.addEventListener("dragover", (event) => dragged(event, true));
      document.addEventListener("dragleave", (event) => dragged(event, event.relatedTarget !== null));
      document.addEventListener("drop", (event) => { dragged(event, false); this.upload(event.dataTransfer?.files[0]); });
      document.addEventListener("paste", (event) => this.upload(event.clipboardData?.files[0]));
    }
    return p;
  }

  /** Compare with another class, by name or number. @param {string} name */
  async other(name) {
    const named = this.hello?.classes.indexOf(name) ?? -1, number = /^(class )?\d{1,9}$/.test(name) ? Number(name.replace("class ", "")) : -1;
    if (Math.max(named, number) < 0) return this.fail(new Error(`no class is named ${name}: give a name in full, or a number`));
    await this.go({ target: this.opened?.target.index ?? null, against: named < 0 ? number : named, path: [], cut: false });
  }
}

/** @param {{exponent: number}} scale */
const times = (scale) => (scale.exponent ? ` \u00d7 10${raised(scale.exponent)}` : "");

/** What names of layers side by side have in common, and what tells them apart. @param {string[]} layers */
export function apart(layers) {
  const words = layers.map((layer) => layer.split(/(?<=[._])/));
  const shared = (/** @type {string[]} */ one, /** @type {string[]} */ other) => {
    let count = 0;
    while (count < Math.min(one.length, other.length) - 1 && one[count] === other[count]) count++;
    return count;
  };
  const first = words[0] ?? [], front = Math.min(...words.map((one) => shared(first, one)), first.length);
  const back = Math.min(...words.map((one) => shared(first.slice(front).reverse(), one.slice(front).reverse())), first.length);
  const own = words.map((one) => one.slice(front, one.length - back).join("").replace(/[._]$/, ""));
  return { common: first.slice(0, front).join("").replace(/[._]$/, ""), own: new Map(layers.map((layer, i) => [layer, own[i]])) };
}

/** A node's name in a column whose head names the layers. @param {Share} share @param {Map<string, string>} own */
function nameOf(share, own) {
  if (share.kind === "bias") return "bias";
  if (share.kind === "by-pass") return "routes around";
  if (share.kind === "rest") return "the rest";
  return `${own.size > 1 ? `${own.get(share.layer ?? "")} ` : ""}${share.unit ?? share.key}`;
}

/** How many characters of a layer's name stand where there is little room. */
const ROOM = 18;

/** A key in few words: of each layer's name the last parts, whole ones, as many as fit but at least one. @param {string} key */
export function short(key) {
  return key.split(" | ").map((one) => {
    const at = one.indexOf("["), layer = at < 0 ? one : one.slice(0, at), unit = at < 0 ? "" : one.slice(at);
    const parts = layer.split(".");
    let brief = parts.pop() ?? "";
    while (parts.length > 0 && parts[parts.length - 1].length + 1 + brief.length <= ROOM) brief = `${parts.pop()}.${brief}`;
    return `${parts.length > 0 ? "\u2026" : ""}${brief}${unit}`;
  }).join(" | ");
}

if (!customElements.get("relupath-view")) customElements.define("relupath-view", RelupathView);

export default {
  /** In a notebook. @param {{model: any, el: HTMLElement}} given */
  render({ model, el }) {
    const view = /** @type {RelupathView} */ (document.createElement("relupath-view"));
    view.given = widgetHost(model);
    view.setAttribute("host", "widget");
    el.append(view);
    return () => {
      view.remove();
      view.given?.leave?.();
    };
  },
};
