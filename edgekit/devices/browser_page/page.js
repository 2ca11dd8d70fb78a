// Fetches one job from edgekit, runs it, sends the numbers back, and waits for the next one.
import { Failure, openModel } from "./runtimes.js";

const MIN_WARMUP_RUNS = 5;
// Different images that latency cycles through; bounds the memory of the tensors.
const MAX_TIMED_IMAGES = 64;
const PROGRESS_MS = 500;
// As edgekit/runner/clock.py has them, where the reasons stand.
const STEP_CHANGES = 50;
const MOST_READINGS = 10_000_000;
const BATCH_TRIES = 5;
const NEXT_JOB_MS = 300;
const FETCHED_BYTES = 4 * 1024 * 1024;

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A request without an end: edgekit sees by its loss that the page is gone. Kept here, because a
// browser may drop an answer that nobody holds.
let alive = null;
let visible = document.visibilityState === "visible";
document.addEventListener("visibilitychange", () => {
  visible &&= document.visibilityState === "visible";
});

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) {
    throw new Error(`${path}: status ${response.status}`);
  }
  return response;
}

async function bytesOf(path) {
  return new Uint8Array(await (await get(path)).arrayBuffer());
}

function show(step, fraction, note = "") {
  element("step").textContent = step;
  element("progress").value = fraction;
  element("note").textContent = note;
}

function describe(job) {
  const task = {
    accuracy: `answers ${job.count} images`,
    latency: `times images for ${job.min_seconds} s or more`,
  };
  const rows = {
    Model: job.name,
    "SHA-256": job.sha256,
    Runtime: `${job.runtime_version}, ${job.threads} thread${job.threads > 1 ? "s" : ""}`,
    Task: task[job.mode],
  };
  for (const [term, text] of Object.entries(rows)) {
    for (const [tag, content] of [["dt", term], ["dd", text]]) {
      const entry = document.createElement(tag);
      entry.textContent = content;
      element("job").append(entry);
    }
  }
}

/** Returns a function that shows and sends a fraction, and lets the browser draw it. */
function reporter(job, step) {
  let last = performance.now();
  return async (fraction) => {
    if (performance.now() - last < PROGRESS_MS) {
      return;
    }
    show(step, fraction);
    fetch(`progress/${job.number}`, { method: "POST", body: String(Math.min(fraction, 1)) }).catch(
      () => {},
    );
    await pause(0);
    last = performance.now();
  };
}

async function loadModel(job) {
  show("Loading the model", 0);
  if (!crossOriginIsolated) {
    throw new Failure(
      "DeviceError",
      "the page is not cross-origin isolated, so it has a coarse clock and no threads",
      "a current browser that opened the printed address itself",
      "open the address in a window of its own, in a current browser",
    );
  }
  const bytes = await bytesOf("model");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== job.sha256) {
    throw new Failure(
      "IntegrityError",
      `${job.name} with SHA-256 ${found}`,
      `SHA-256 ${job.sha256}`,
      "the file changed since it was recorded; export it again",
    );
  }
  const model = await openModel(job.runtime, bytes, job.threads, job.output);
  const sides = [job.height, job.width];
  const wanted = job.layout === "NCHW" ? [job.channels, ...sides] : [...sides, job.channels];
  if (model.shape.slice(1).join() !== wanted.join()) {
    throw new Failure(
      "SpecError",
      `images of ${job.height} x ${job.width}, a model for [${model.shape}]`,
      `the same height and width: [1,${wanted}]`,
      "decode the images for this model",
    );
  }
  return model;
}

/**
 * Returns a function from an image (uint8 pixels, three channels last) to the values of the input
 * tensor; of one channel the first is fed.
 */
async function loadEncoder(job) {
  const codes = new Float32Array((await bytesOf("codes")).buffer);
  const pixels = job.height * job.width;
  const [ofPixel, ofChannel] = job.layout === "NCHW" ? [1, pixels] : [job.channels, 1];
  return (image) => {
    const values = new Float32Array(pixels * job.channels);
    for (let pixel = 0; pixel < pixels; pixel++) {
      for (let channel = 0; channel < job.channels; channel++) {
        const value = codes[image[pixel * 3 + channel] * job.channels + channel];
        values[pixel * ofPixel + channel * ofChannel] = value;
      }
    }
    return values;
  };
}

async function* images(job, count) {
  const size = job.height * job.width * 3;
  const step = Math.max(1, Math.floor(FETCHED_BYTES / size));
  for (let start = 0; start < count; start += step) {
    const stop = Math.min(start + step, count);
    const block = await bytesOf(`images/${start}-${stop}`);
    for (let i = 0; i < stop - start; i++) {
      yield block.subarray(i * size, (i + 1) * size);
    }
  }
}

async function answerAll(job, model, encode) {
  const scores = new Float32Array(job.count * model.columns);
  const report = reporter(job, "Answering the images");
  let row = 0;
  for await (const image of images(job, job.count)) {
    const answer = await model.run(encode(image));
    if (answer.length !== model.columns) {
      throw new Error(`${answer.length} scores, ${model.columns} expected`);
    }
    scores.set(answer, row * model.columns);
    row += 1;
    await report(row / job.count);
  }
  return {
    values: scores,
    columns: model.columns,
    warmup_runs: 0,
    clock_step_ms: null,
    calls_per_sample: 1,
  };
}

/** Returns the least by which the clock moves from one reading to the next, in milliseconds. */
function clockStep() {
  let [step, changes, last] = [Infinity, 0, performance.now()];
  for (let readings = 0; readings < MOST_READINGS && changes < STEP_CHANGES; readings++) {
    const now = performance.now();
    if (now > last) {
      step = Math.min(step, now - last);
      changes += 1;
    }
    last = now;
  }
  if (!changes) {
    throw new Failure(
      "DeviceError",
      "a clock that stands still",
      "a clock that moves",
      "try another browser",
    );
  }
  return step;
}

/** Returns how many calls make a sample of enough steps, and how many were made to find out. */
async function callsPerSample(job, timed, step) {
  for (let calls = 1, made = 0; ; calls *= 2) {
    let shortest = Infinity;
    for (let attempt = 0; attempt < BATCH_TRIES; attempt++, made += calls) {
      shortest = Math.min(shortest, await timed(made, calls));
    }
    if (shortest >= job.sample_steps * step || 2 * shortest > job.longest_sample_ms) {
      return [calls, made];
    }
  }
}

async function timeCalls(job, model, encode) {
  const tensors = [];
  for await (const image of images(job, Math.min(job.count, MAX_TIMED_IMAGES))) {
    tensors.push(encode(image));
  }
  show("Warming up", 0);
  await pause(0);
  let runs = 0;
  for (
    const start = performance.now();
    runs < MIN_WARMUP_RUNS || performance.now() - start < job.warmup_seconds * 1000;
    runs++
  ) {
    await model.run(tensors[runs % tensors.length]);
  }
  /** Returns the milliseconds of calls one behind the other. */
  const timed = async (first, calls) => {
    const start = performance.now();
    for (let i = first; i < first + calls; i++) {
      await model.run(tensors[i % tensors.length]);
    }
    return performance.now() - start;
  };
  const step = clockStep();
  const [calls, made] = await callsPerSample(job, timed, step);
  const report = reporter(job, "Timing images");
  const samples = [];
  const wanted = job.min_seconds * 1000;
  const begin = performance.now();
  while (samples.length < job.min_queries || performance.now() - begin < wanted) {
    samples.push((await timed(samples.length * calls, calls)) / calls);
    const share = wanted ? (performance.now() - begin) / wanted : 1;
    await report(Math.min(share, samples.length / job.min_queries));
  }
  return {
    values: Float64Array.from(samples),
    columns: 1,
    warmup_runs: runs + made,
    clock_step_ms: step,
    calls_per_sample: calls,
  };
}

function summary(job, values) {
  if (job.mode === "accuracy") {
    return `${job.count} images answered.`;
  }
  const median = values.toSorted()[Math.floor(values.length / 2)];
  return `${values.length} samples, median ${median.toPrecision(3)} ms.`;
}

async function send(job, { values, ...about }) {
  const facts = {
    rows: values.length / about.columns,
    ...about,
    user_agent: navigator.userAgent,
    hardware_concurrency: navigator.hardwareConcurrency,
    visible,
    cross_origin_isolated: crossOriginIsolated,
  };
  const body = new Blob([JSON.stringify(facts), "\n", values]);
  const response = await fetch(`result/${job.number}`, { method: "POST", body });
  if (!response.ok) {
    throw new Error(`edgekit refused the result: status ${response.status}`);
  }
}

async function fail(job, error) {
  const parts =
    error instanceof Failure
      ? error.parts
      : {
          error: "DeviceError",
          received: String(error?.message ?? error),
          expected: "a runtime that works in this browser",
          remedy: "try a current browser, or another runtime",
        };
  document.body.className = "failed";
  show("Failed", 0, `${parts.received}\nexpected: ${parts.expected}\nto do: ${parts.remedy}`);
  const body = JSON.stringify({ kind: "failure", ...parts });
  await fetch(`failure/${job.number}`, { method: "POST", body });
}

/** Starts anew, with a fresh page, as soon as edgekit has another job. */
async function waitForNext(job) {
  for (;;) {
    await pause(NEXT_JOB_MS);
    let next;
    try {
      next = await (await get("job.json")).json();
    } catch {
      element("note").textContent += "\nedgekit has ended: this page may be closed.";
      return;
    }
    if (next.number !== job.number) {
      location.reload();
      return;
    }
  }
}

async function main() {
  const job = await (await get("job.json")).json();
  describe(job);
  alive = fetch(`alive/${job.number}`).catch(() => {});
  try {
    const model = await loadModel(job);
    const encode = await loadEncoder(job);
    const work = { accuracy: answerAll, latency: timeCalls }[job.mode];
    const result = await work(job, model, encode);
    await send(job, result);
    document.body.className = "done";
    show("Done", 1, summary(job, result.values));
  } catch (error) {
    await fail(job, error);
  }
  await waitForNext(job);
}

main().catch((error) => show("Failed", 0, String(error)));
