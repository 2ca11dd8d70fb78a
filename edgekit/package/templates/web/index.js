// Classifies pictures in the browser exactly as the model was trained to see them.
import { openModel } from "./runtime.js";

// Written out, so that bundlers find the files and bring them along.
const CONTRACT = new URL("./contract.json", import.meta.url);
const LABELS = new URL("./labels.json", import.meta.url);
const MODEL = new URL("./@@MODEL@@", import.meta.url);

// Bits behind the point of a resampling weight, as in Pillow's src/libImaging/Resample.c.
const PRECISION_BITS = 22;
// Rows of a picture that are read at a time: a canvas of a whole photograph is too large for phones.
const STRIP_ROWS = 128;

/**
 * Loads the model and the runtime.
 *
 * @param {object} options
 * @param {string | URL} options.runtimeBase Address of the folder with the runtime's .wasm files.
 * @param {string | URL} [options.modelUrl] Address of the model. Defaults to the file beside this
 *     module.
 * @param {number} [options.threads] Threads of the runtime. Defaults to the number that the model
 *     was judged with; more than one need a cross-origin isolated page.
 * @returns {Promise<Classifier>}
 * @throws {Error} If a file cannot be fetched, or the model's SHA-256 is not that of the judged one.
 */
export async function load({ runtimeBase, modelUrl = MODEL, threads }) {
  const [contract, labels, bytes] = await Promise.all([
    fetched(CONTRACT).then((response) => response.json()),
    fetched(LABELS).then((response) => response.json()),
    fetched(modelUrl).then((response) => response.arrayBuffer()),
  ]);
  const sha256 = await digestOf(bytes);
  if (sha256 !== contract.sha256) {
    throw new Error(
      `${modelUrl}: SHA-256 ${sha256}, expected ${contract.sha256}: this is not the file that was ` +
        "judged, or it was damaged on its way; copy it again from the package",
    );
  }
  const base = new URL(String(runtimeBase).replace(/\/*$/, "/"), globalThis.location?.href);
  const model = await openModel(new Uint8Array(bytes), {
    base: base.href,
    shape: [1, contract.height, contract.width, channelsOf(contract)],
    threads: threads ?? contract.threads,
  });
  return new Classifier(model, contract, labels);
}

/** A loaded model; comes from `load`. */
class Classifier {
  #model;
  #contract;
  #codes;
  #last = Promise.resolve();

  constructor(model, contract, labels) {
    this.#model = model;
    this.#contract = contract;
    this.#codes = codesOf(contract);
    /** Names of the classes in the order of the outputs; any text, so never use them as HTML. */
    this.labels = Object.freeze([...labels]);
    /** Height, width and channels of the input. */
    this.inputShape = Object.freeze([contract.height, contract.width, channelsOf(contract)]);
    /** SHA-256 of the model in hex; it was checked. */
    this.sha256 = contract.sha256;
    /** Package and version of the runtime that the model was judged with. */
    this.runtime = contract.runtime;
    /** How far outputs may be from those of another processor, as a share of the largest. */
    this.toleranceShare = contract.tolerance_share;
    /** Few pictures of no class have a score above this; null if nobody knows such a score. */
    this.scoreThreshold = contract.score_threshold;
    /** Threads that the runtime was asked for. */
    this.threads = model.threads;
  }

  /**
   * Answers one picture.
   *
   * @param {ImageBitmapSource} source A file (Blob), <img>, canvas, video, ImageBitmap or ImageData.
   * @returns {Promise<{label: string, index: number, score: number, accepted: boolean}[]>} Every
   *     class, the most likely first; the score is the model's own output, and an answer that is not
   *     `accepted` does not count: most likely the picture is of no class.
   */
  async classify(source) {
    const scores = await this.run(await this.preprocess(source));
    return Array.from(scores, (score, index) => ({
      label: this.labels[index],
      index,
      score,
      accepted: this.accepts(score),
    })).sort((a, b) => b.score - a.score);
  }

  /** Returns whether an answer with this score counts: it is above `scoreThreshold`, if there is one. */
  accepts(score) {
    return this.scoreThreshold === null || score > this.scoreThreshold;
  }

  /**
   * Turns a picture into the values of the input tensor: upright, cropped, resized, normalized.
   *
   * @param {ImageBitmapSource} source As for `classify`.
   * @returns {Promise<Float32Array>} height x width x channels values.
   */
  async preprocess(source) {
    const pixels = await pixelsOf(source, this.#contract);
    const [height, width, channels] = this.inputShape;
    return Float32Array.from({ length: height * width * channels }, (_, i) => {
      const channel = i % channels;
      return this.#codes[pixels[Math.floor(i / channels) * 3 + channel] * 3 + channel];
    });
  }

  /**
   * Runs the model on the values of one input tensor.
   *
   * @param {Float32Array} values height x width x channels values.
   * @returns {Promise<Float32Array>} One score for each class.
   */
  run(values) {
    // One after the other: the runtimes do not take a second call before the first has ended.
    const answer = this.#last.then(() => this.#scores(values));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #scores(values) {
    const scores = await this.#model.run(values);
    if (scores.length !== this.labels.length) {
      throw new Error(`${scores.length} scores for ${this.labels.length} labels`);
    }
    return scores;
  }

  /** Frees the model's memory, which is not garbage-collected. */
  async close() {
    await this.#last;
    await this.#model.close();
  }
}

/** Returns the SHA-256 of bytes in hex. */
export async function digestOf(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new Error(
      "this page has no crypto.subtle, so the model cannot be checked: serve it over https, or on " +
        "localhost",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`${url}: status ${response.status}; serve this file with the page`);
  }
  return response;
}

/** Returns the channels of the input: one for a model that sees luma, the first of a pixel's three. */
function channelsOf({ channels }) {
  return channels === "grey" ? 1 : 3;
}

/** Returns the tensor value of each pixel value, per channel: pixel * scale + offset. */
function codesOf({ scale, offset }) {
  return Float32Array.from({ length: 256 * 3 }, (_, i) => {
    return Math.floor(i / 3) * scale[i % 3] + offset[i % 3];
  });
}

/** Returns the pixels of a picture under the contract: height x width x 3 bytes; luma thrice. */
async function pixelsOf(source, contract) {
  const picture = await decode(source);
  try {
    const place = contract.crop === "letterbox" ? letterbox(picture, contract) : null;
    const { width, height } = place ?? contract;
    const box = cropped(picture, contract);
    const read = () => strips(picture, box, contract.channels === "grey");
    const pixels =
      contract.resize === "nearest"
        ? nearest(read, box, width, height)
        : resample(read, box, width, height, FILTERS[contract.resize]);
    const resized = place ? filled(pixels, place, contract) : pixels;
    return contract.channels === "bgr" ? swapped(resized) : resized;
  } finally {
    picture.close();
  }
}

/** Returns an upright bitmap whose colours are those in the file: colour profiles are ignored. */
async function decode(source) {
  const isElement = "HTMLImageElement" in globalThis && source instanceof HTMLImageElement;
  if (isElement) {
    await source.decode();
  }
  if (isElement || source instanceof Blob) {
    return createImageBitmap(source, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  }
  return createImageBitmap(source);
}

/** Returns the part of a picture that is used, in whole pixels. */
function cropped(picture, { crop, width, height }) {
  if (crop !== "center") {
    return { left: 0, top: 0, width: picture.width, height: picture.height };
  }
  const ratio = Math.min(picture.width / width, picture.height / height);
  const [keptWidth, keptHeight] = [roundHalfEven(width * ratio), roundHalfEven(height * ratio)];
  return {
    left: Math.trunc((picture.width - keptWidth) / 2),
    top: Math.trunc((picture.height - keptHeight) / 2),
    width: keptWidth,
    height: keptHeight,
  };
}

/** Returns where a whole picture lies in the input, in whole numbers: no device rounds otherwise. */
function letterbox(picture, contract) {
  let { width, height } = contract;
  if (picture.width * height >= picture.height * width) {
    const doubled = 2 * picture.height * width + picture.width;
    height = Math.max(1, Math.floor(doubled / (2 * picture.width)));
  } else {
    const doubled = 2 * picture.width * height + picture.height;
    width = Math.max(1, Math.floor(doubled / (2 * picture.height)));
  }
  const left = Math.floor((contract.width - width) / 2);
  return { left, top: Math.floor((contract.height - height) / 2), width, height };
}

/** Returns the pixels of the whole input around those of a picture that lies in it. */
function filled(pixels, { left, top, width }, contract) {
  const size = contract.height * contract.width * 3;
  const all = Uint8ClampedArray.from({ length: size }, (_, i) => contract.fill[i % 3]);
  for (let from = 0; from < pixels.length; from += width * 3) {
    const row = top + from / (width * 3);
    all.set(pixels.subarray(from, from + width * 3), (row * contract.width + left) * 3);
  }
  return all;
}

function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/**
 * Yields the rows of a part of a picture, strip by strip, as RGBA bytes on white ground.
 *
 * @param {boolean} isGrey Whether red, green and blue become their luma.
 */
function* strips(picture, { left, top, width, height }, isGrey) {
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP_ROWS));
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#fff";
  for (let first = 0; first < height; first += STRIP_ROWS) {
    const count = Math.min(STRIP_ROWS, height - first);
    context.fillRect(0, 0, width, count);
    context.drawImage(picture, left, top + first, width, count, 0, 0, width, count);
    const rgba = context.getImageData(0, 0, width, count).data;
    yield { first, count, rgba: isGrey ? grey(rgba) : rgba };
  }
}

/** Turns pixels to their luma: ITU-R 601-2 with 16 bits behind the point, as Pillow's convert("L"). */
function grey(rgba) {
  for (let i = 0; i < rgba.length; i += 4) {
    const luma = (19595 * rgba[i] + 38470 * rgba[i + 1] + 7471 * rgba[i + 2] + 0x8000) >> 16;
    rgba.fill(luma, i, i + 3);
  }
  return rgba;
}

// The filters of Pillow: how far they reach, and the weight at a distance.
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const d = Math.abs(x);
      if (d < 1) {
        return (1.5 * d - 2.5) * d * d + 1;
      }
      return d < 2 ? (((d - 5) * d + 8) * d - 4) * -0.5 : 0;
    },
  },
};

/**
 * Returns the first source pixel and the fixed-point weights of each resized pixel.
 *
 * Computed as Pillow does, in double precision and then rounded, so that pixels come out equal.
 */
function weightsOf(sourceSize, size, filter) {
  const scale = sourceSize / size;
  // Downscaling widens the filter, so that every source pixel counts.
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: size }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(sourceSize, Math.trunc(center + support + 0.5));
    const weights = [];
    let sum = 0;
    for (let x = start; x < end; x++) {
      weights.push(filter.weight((x - center + 0.5) * (1 / stretch)));
      sum += weights.at(-1);
    }
    const fixed = weights.map((weight) => {
      const scaled = (weight / sum) * 2 ** PRECISION_BITS;
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { start, weights: Int32Array.from(fixed) };
  });
}

/** Resizes antialiased: rows first, then columns, each rounded to 8 bits, as Pillow does. */
function resample(read, box, width, height, filter) {
  const half = 1 << (PRECISION_BITS - 1);
  const columns = weightsOf(box.width, width, filter);
  // Stores clamp to 0..255.
  const narrow = new Uint8ClampedArray(box.height * width * 3);
  for (const { first, count, rgba } of read()) {
    for (let y = 0; y < count; y++) {
      const row = y * box.width * 4;
      let to = (first + y) * width * 3;
      for (const { start, weights } of columns) {
        let [red, green, blue] = [half, half, half];
        for (let k = 0, from = row + start * 4; k < weights.length; k++, from += 4) {
          red += rgba[from] * weights[k];
          green += rgba[from + 1] * weights[k];
          blue += rgba[from + 2] * weights[k];
        }
        narrow[to++] = red >> PRECISION_BITS;
        narrow[to++] = green >> PRECISION_BITS;
        narrow[to++] = blue >> PRECISION_BITS;
      }
    }
  }
  const resized = new Uint8ClampedArray(height * width * 3);
  const stride = width * 3;
  weightsOf(box.height, height, filter).forEach(({ start, weights }, y) => {
    for (let x = 0; x < stride; x++) {
      let sum = half;
      for (let k = 0, from = start * stride + x; k < weights.length; k++, from += stride) {
        sum += narrow[from] * weights[k];
      }
      resized[y * stride + x] = sum >> PRECISION_BITS;
    }
  });
  return resized;
}

/** Resizes by taking single pixels, at the places where Pillow takes them. */
function nearest(read, box, width, height) {
  const [columns, rows] = [places(box.width, width), places(box.height, height)];
  const resized = new Uint8ClampedArray(height * width * 3);
  for (const { first, count, rgba } of read()) {
    rows.forEach((row, y) => {
      if (row < first || row >= first + count) {
        return;
      }
      columns.forEach((column, x) => {
        const from = ((row - first) * box.width + column) * 4;
        resized.set(rgba.subarray(from, from + 3), (y * width + x) * 3);
      });
    });
  }
  return resized;
}

function places(sourceSize, size) {
  const step = sourceSize / size;
  let place = step * 0.5;
  return Array.from({ length: size }, () => {
    const found = Math.trunc(place);
    place += step;
    return found;
  });
}

function swapped(pixels) {
  for (let i = 0; i < pixels.length; i += 3) {
    [pixels[i], pixels[i + 2]] = [pixels[i + 2], pixels[i]];
  }
  return pixels;
}
