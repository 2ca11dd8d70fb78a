// What the self-check checks: known inputs with known answers, time, and the user's own pictures.
import { digestOf } from "./index.js";

// Largest mean difference from the pixels that the model was judged with, in levels of 255. Measured
// with Chromium: 0.1; training may have decoded large JPEGs at a reduced size, 0.2 on photographs.
const PIXEL_LIMIT = 2;
// Classes whose known outputs are this share of all outputs' range apart may change places when
// pixels are a level apart: measured up to 8 %.
const NEAR_TIE = 0.1;
const WARM_UP_RUNS = 5;
const WARM_UP_MS = 500;
// A sample is wrong by up to one step of the clock, here by at most half a percent; calls that are
// shorter are timed in batches. None takes longer than this, whatever the clock.
const SAMPLE_STEPS = 200;
const LONGEST_SAMPLE_MS = 250;
const BATCH_TRIES = 5;
const STEP_CHANGES = 50;
const MOST_READINGS = 10_000_000;
const SHOWN = 5;
const PREPROCESSING = "resize, channel order, EXIF rotation or normalization";

const pause = () => new Promise((resolve) => setTimeout(resolve));

/**
 * Fetches the goldens.
 *
 * @param {URL} base Their folder.
 * @returns {Promise<object>} What goldens.json says; each golden with its `input` and `output`.
 */
export async function readGoldens(base) {
  const get = async (path) => {
    const response = await fetch(new URL(path, base));
    if (!response.ok) {
      throw new Error(
        `${new URL(path, base)}: status ${response.status}; serve the whole package, with the ` +
          "folder goldens beside the folder of this page",
      );
    }
    return response;
  };
  const about = await (await get("goldens.json")).json();
  if (!Array.isArray(about.goldens) || !about.goldens.length) {
    throw new Error(
      "goldens.json has no goldens, so nothing shows what the model answers; copy the folder again",
    );
  }
  const inputs = await (await get("inputs.bin")).arrayBuffer();
  const outputs = await (await get("outputs.bin")).arrayBuffer();
  const goldens = about.goldens.map((golden) => ({
    ...golden,
    input: new Float32Array(inputs, golden.input_offset, golden.input_bytes / 4),
    output: new Float32Array(outputs, golden.output_offset, golden.output_bytes / 4),
    // Pictures are fetched one by one, when their turn comes.
    open: async () => (await get(`images/${encodeURIComponent(golden.picture)}`)).blob(),
  }));
  return { ...about, goldens };
}

const result = (level, name, failures, passed, failed) => ({
  level,
  name,
  status: failures.length ? "fail" : "pass",
  message: failures.length ? failed : passed,
  details: failures,
});

/** Compares the names of the classes with those that the model was judged with. */
export function checkLabels(classifier, { labels }) {
  const failures = Array.from(
    { length: Math.max(labels.length, classifier.labels.length) },
    (_, i) =>
      labels[i] === classifier.labels[i]
        ? ""
        : `class ${i}: "${classifier.labels[i]}", expected "${labels[i]}"`,
  ).filter(Boolean);
  return result(
    "labels",
    "Labels",
    failures,
    `${labels.length} classes, named as when the model was judged.`,
    "labels.json is not that of this model: answers get the names of other classes. Copy it again " +
      "from the package.",
  );
}

/**
 * Level A: exact input values must give the known outputs.
 *
 * @param {(fraction: number) => void} progress
 */
export async function checkTensors(classifier, { goldens }, progress) {
  const failures = [];
  for (const [i, { name, input, output, accepted }] of goldens.entries()) {
    const scores = await classifier.run(input);
    const tolerance = classifier.toleranceShare * output.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const apart = scores.reduce((most, x, k) => Math.max(most, Math.abs(x - output[k])), 0);
    if (scores.length !== output.length) {
      failures.push(`${name}: ${scores.length} outputs, expected ${output.length}`);
    } else if (!(apart <= tolerance)) {
      failures.push(`${name}: outputs ${shown(apart)} apart, at most ${shown(tolerance)} allowed`);
    } else if (accepted !== null && classifier.accepts(Math.max(...scores)) !== accepted) {
      const said = accepted ? "does not count, but must" : "counts, but must not";
      failures.push(`${name}: its answer ${said}: contract.json has another score_threshold`);
    }
    progress((i + 1) / goldens.length);
  }
  return result(
    "A",
    "Level A: tensors",
    failures,
    `${goldens.length} known inputs gave the known outputs.`,
    `${failures.length} of ${goldens.length} known inputs gave other outputs than when the model ` +
      "was judged. The preprocessing has no part in this: look at the model file, and at the " +
      "runtime and its kernels " +
      `(judged with ${classifier.runtime.package} ${classifier.runtime.version}).`,
  );
}

/**
 * Level B: source pictures, through the app's own preprocessing, must give the known classes.
 *
 * @param {boolean} tensorsPassed Whether level A passed.
 * @param {(fraction: number) => void} progress
 */
export async function checkPictures(classifier, about, tensorsPassed, progress) {
  const goldens = about.goldens.filter((golden) => golden.picture !== null);
  const failures = [];
  const causes = new Map();
  const differences = [];
  let ties = 0;
  for (const [i, golden] of goldens.entries()) {
    const { name, answer, input } = golden;
    const values = await classifier.preprocess(await golden.open());
    const scores = await classifier.run(values);
    const found = scores.indexOf(Math.max(...scores));
    const [own, known] = [values, input].map((tensor) => levels(tensor, about.preprocess, classifier.inputShape[2]));
    const apart = meanDifference(own, known);
    differences.push(apart);
    if (!(apart <= PIXEL_LIMIT)) {
      const cause = likelyCause(own, known, classifier.inputShape);
      causes.set(cause, (causes.get(cause) ?? 0) + 1);
      failures.push(`${name}: pixels ${apart.toFixed(1)} of 255 levels apart on average; ${cause}`);
    } else if (found !== answer && nearTie(golden.output, answer, found)) {
      ties += 1;
    } else if (found !== answer) {
      failures.push(
        `${name}: answered "${classifier.labels[found]}", expected "${classifier.labels[answer]}"`,
      );
    }
    progress((i + 1) / goldens.length);
  }
  if (!goldens.length) {
    return {
      level: "B",
      name: "Level B: pictures",
      status: "skipped",
      message: "The package holds no pictures, so the preprocessing was not checked.",
      details: [],
    };
  }
  const told = [...causes].map(([cause, count]) => `${cause} (in ${count} of them)`).join("; ");
  const failed = tensorsPassed
    ? `Level A passes, so the model and the runtime are right: look at the app's ${PREPROCESSING}.`
    : `Mend what fails above first; the app's ${PREPROCESSING} can be wrong as well.`;
  const mean = differences.reduce((sum, x) => sum + x, 0) / differences.length;
  return {
    ...result(
      "B",
      "Level B: pictures",
      failures,
      `${goldens.length} pictures gave the known classes; their pixels are ` +
        `${mean.toFixed(2)} of 255 levels from the known ones on average, ` +
        `${Math.max(...differences).toFixed(2)} at most.` +
        (ties ? ` ${ties} answered with the other class of a near tie.` : ""),
      `${failures.length} of ${goldens.length} pictures failed. ${failed}` +
        (told ? ` Most likely: ${told}.` : ""),
    ),
    differences,
  };
}

function nearTie(output, answer, found) {
  const range = Math.max(...output) - Math.min(...output);
  return Math.abs(output[answer] - output[found]) <= NEAR_TIE * range;
}

/** Returns a tensor's values as pixel levels. */
function levels(values, { scale, offset }, channels) {
  return Float64Array.from(values, (value, i) => (value - offset[i % channels]) / scale[i % channels]);
}

function meanDifference(a, b) {
  return a.reduce((sum, x, i) => sum + Math.abs(x - b[i]), 0) / a.length;
}

/** Says what was done to the known pixels to make the app's own of them. */
function likelyCause(own, known, [height, width, channels]) {
  const fits = (pixels) => meanDifference(pixels, known) <= PIXEL_LIMIT;
  if (channels === 3 && fits(own.map((_, i) => own[i + 2 - 2 * (i % 3)]))) {
    return "the channel order is reversed (BGR for RGB)";
  }
  if (turns(own, height, width, channels).some(fits)) {
    return "the EXIF rotation is not applied, or applied twice";
  }
  if (fits(fitted(own, known))) {
    return "the normalization (scale or offset) is another";
  }
  return "the resize (filter, antialiasing or crop) is another, or colour profiles are applied";
}

/** Returns an image turned and mirrored in every way that keeps its shape. */
function turns(pixels, height, width, channels) {
  const moved = (place) =>
    pixels.map((_, i) => {
      const at = Math.floor(i / channels);
      const [y, x] = place(Math.floor(at / width), at % width);
      return pixels[(y * width + x) * channels + (i % channels)];
    });
  const [bottom, right] = [height - 1, width - 1];
  const found = [
    moved((y, x) => [y, right - x]),
    moved((y, x) => [bottom - y, x]),
    moved((y, x) => [bottom - y, right - x]),
  ];
  if (height === width) {
    found.push(
      moved((y, x) => [x, y]),
      moved((y, x) => [bottom - x, y]),
      moved((y, x) => [x, right - y]),
      moved((y, x) => [bottom - x, right - y]),
    );
  }
  return found;
}

/** Returns the values times a factor plus an addend, by least squares nearest to the known ones. */
function fitted(own, known) {
  const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
  const [ownMean, knownMean] = [mean(own), mean(known)];
  const together = mean(own.map((x, i) => (x - ownMean) * (known[i] - knownMean)));
  const factor = together / mean(own.map((x) => (x - ownMean) ** 2));
  // Of a picture without contrast everything is a multiple.
  return factor > 0 ? own.map((x) => knownMean + factor * (x - ownMean)) : own;
}

/**
 * Times calls with values that are ready.
 *
 * @param {{minSeconds: number, minRuns: number}} least Shortest time and fewest samples.
 * @returns {Promise<{samples: number[], warmUpRuns: number, clockStep: number, callsPerSample:
 *     number}>} Milliseconds of each call, or where one is too short for the clock, means of
 *     `callsPerSample` calls; and the least by which the clock moves, in milliseconds.
 */
export async function timeCalls(classifier, { goldens }, { minSeconds, minRuns }, progress) {
  const input = (i) => goldens[i % goldens.length].input;
  let runs = 0;
  for (const begin = performance.now(); runs < WARM_UP_RUNS || performance.now() - begin < WARM_UP_MS; ) {
    await classifier.run(input(runs++));
  }
  const timed = async (first, calls) => {
    const start = performance.now();
    for (let i = first; i < first + calls; i++) {
      await classifier.run(input(i));
    }
    return performance.now() - start;
  };
  const step = clockStep(() => performance.now());
  const [calls, made] = await callsPerSample(timed, step);
  const samples = [];
  const begin = performance.now();
  for (let share = 0; share < 1; ) {
    samples.push((await timed(samples.length * calls, calls)) / calls);
    const passed = performance.now() - begin;
    share = Math.min(passed / (minSeconds * 1000), samples.length / minRuns);
    if (samples.length % 16 === 0) {
      progress(Math.min(share, 1));
      await pause();
    }
  }
  return { samples, warmUpRuns: runs + made, clockStep: step, callsPerSample: calls };
}

/** Returns the least by which a clock moves from one reading to the next. */
export function clockStep(clock) {
  let [step, changes, last] = [Infinity, 0, clock()];
  for (let readings = 0; readings < MOST_READINGS && changes < STEP_CHANGES; readings++) {
    const now = clock();
    if (now > last) {
      step = Math.min(step, now - last);
      changes += 1;
    }
    last = now;
  }
  if (!changes) {
    throw new Error("the clock of this browser stands still");
  }
  return step;
}

/**
 * Returns how many calls span enough steps of the clock, and how many were made to find out.
 *
 * Of some batches the shortest decides: one that is interrupted must not end the search.
 */
export async function callsPerSample(timed, step) {
  for (let calls = 1, made = 0; ; calls *= 2) {
    let shortest = Infinity;
    for (let attempt = 0; attempt < BATCH_TRIES; attempt++, made += calls) {
      shortest = Math.min(shortest, await timed(made, calls));
    }
    if (shortest >= SAMPLE_STEPS * step || 2 * shortest > LONGEST_SAMPLE_MS) {
      return [calls, made];
    }
  }
}

/** Returns the sample that so many percent do not exceed (nearest rank). */
export function percentile(samples, percent) {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

/**
 * Answers pictures whose folder is named as their class.
 *
 * @param {{path: string, file: Blob}[]} pictures
 * @returns {Promise<{answers: object[], right: number, skipped: string[]}>} `answers` in the format
 *     of `edgekit validate --measurements`.
 */
export async function answerPictures(classifier, pictures, progress) {
  const [answers, skipped] = [[], []];
  const classes = new Set(classifier.labels.map((label) => label.normalize("NFC")));
  let right = 0;
  for (const [i, { path, file }] of pictures.entries()) {
    progress(i / pictures.length);
    const folder = path.split("/").at(-2)?.normalize("NFC");
    if (!classes.has(folder)) {
      skipped.push(`${path}: "${folder ?? ""}" is no class`);
      continue;
    }
    try {
      const [top] = await classifier.classify(file);
      right += top.label.normalize("NFC") === folder ? 1 : 0;
      const sha256 = await digestOf(await file.arrayBuffer());
      answers.push({ sha256, answer: top.label, score: top.score });
    } catch (error) {
      skipped.push(`${path}: ${error.message}`);
    }
  }
  progress(1);
  return { answers, right, skipped };
}

/**
 * Returns what was measured in the format of `edgekit validate --measurements`.
 *
 * @param {{by: string, device: string}} who Who measured, and on which device, in words.
 * @param {object | null} timing From `timeCalls`.
 * @param {object[]} answers From `answerPictures`.
 */
export function measurements(classifier, who, timing, answers) {
  const words = (text) => [...text].slice(0, 200).join("");
  return {
    edgekit_measurements: 1,
    sha256: classifier.sha256,
    by: words(who.by),
    at: new Date().toISOString(),
    device: words(who.device),
    os: words(navigator.userAgent),
    cores: navigator.hardwareConcurrency,
    runtime: classifier.runtime.name,
    runtime_version: classifier.runtime.version,
    threads: classifier.threads,
    delegate: "wasm",
    // The page has worked before it is timed.
    ...(timing && {
      latency: [
        {
          samples_ms: timing.samples,
          fresh_process: false,
          warmup_runs: timing.warmUpRuns,
          clock_step_ms: timing.clockStep,
          calls_per_sample: timing.callsPerSample,
        },
      ],
    }),
    ...(answers.length && { accuracy: answers }),
  };
}

/** Returns the first details, and how many more there are. */
export function few(details) {
  const more = details.length - SHOWN;
  return more > 0 ? [...details.slice(0, SHOWN), `and ${more} more`] : details;
}

function shown(number) {
  return Number(number.toPrecision(3));
}
