// The page around checks.js. Everything that is shown goes through textContent: labels are any text.
//
// selfcheck.html?report=PATH posts the results as JSON to a path of the same server, for automatic
// tests; ?seconds=N sets how long single pictures are timed (3).
import {
  answerPictures,
  checkLabels,
  checkPictures,
  checkTensors,
  few,
  measurements,
  percentile,
  readGoldens,
  timeCalls,
} from "./checks.js";
import { load } from "./index.js";

const PERCENTILES = [50, 90, 95, 99];
const MIN_RUNS = 200;
const SECONDS = 3;

const element = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const checks = [];
let classifier = null;
let timing = null;
let answers = [];
let step = "";

function added(parent, tag, text, className = "") {
  const child = document.createElement(tag);
  child.textContent = text;
  child.className = className;
  parent.append(child);
  return child;
}

function show(check) {
  checks.push(check);
  const item = added(element("checks"), "li", "", check.status);
  added(item, "span", check.status, "status");
  added(item, "h3", check.name);
  added(item, "p", check.message);
  if (check.details.length) {
    const list = added(item, "ul", "");
    for (const detail of few(check.details)) {
      // Names in a right-to-left script must not turn the words around them.
      added(list, "li", detail).dir = "auto";
    }
  }
}

function working(words) {
  step = words;
  element("verdict").textContent = `${step} …`;
  return (fraction) => {
    element("progress").value = fraction;
  };
}

async function loaded() {
  const base = document.querySelector('meta[name="runtime-base"]').content;
  try {
    classifier = await load({ runtimeBase: new URL(base, location.href) });
  } catch (error) {
    show({
      level: "model",
      name: "Model",
      status: "fail",
      message:
        "The model was not loaded. If the message names a SHA-256, the model file is another or " +
        "damaged; if it names a module or a .wasm file, the runtime is missing: run npm install " +
        "in the folder of this page.",
      details: [String(error?.message ?? error)],
    });
    throw error;
  }
  show({
    level: "model",
    name: "Model",
    status: "pass",
    message: "The file is the one that was judged, byte for byte (SHA-256), and the runtime runs it.",
    details: [],
  });
}

function showFacts(about) {
  const facts = {
    "SHA-256": classifier.sha256,
    Runtime: `judged with ${classifier.runtime.package} ${classifier.runtime.version}, ` +
      `${classifier.threads} thread${classifier.threads > 1 ? "s" : ""}`,
    Input: classifier.inputShape.join(" × "),
    Goldens: `${about.goldens.length}`,
    Browser: navigator.userAgent,
  };
  for (const [term, text] of Object.entries(facts)) {
    added(element("facts"), "dt", term);
    added(element("facts"), "dd", text);
  }
  added(element("facts"), "dt", "Classes");
  const names = added(element("facts"), "dd", "");
  classifier.labels.forEach((label, i) => {
    names.append(i ? ", " : "");
    added(names, "bdi", label);
  });
}

function showTiming() {
  for (const percent of PERCENTILES) {
    added(element("percentiles"), "th", `p${percent}`);
    const value = percentile(timing.samples, percent);
    added(element("milliseconds"), "td", `${value < 1 ? value.toPrecision(3) : value.toFixed(2)} ms`);
  }
  const means =
    timing.callsPerSample > 1
      ? `, each the mean of ${timing.callsPerSample} calls, in which single slow ones do not show`
      : "";
  element("latency-note").textContent =
    `${timing.samples.length} samples of the model alone${means}, after ${timing.warmUpRuns} calls ` +
    `to warm up; the clock moves in steps of ${Number(timing.clockStep.toPrecision(2))} ms` +
    (crossOriginIsolated ? "." : ", as the page is not cross-origin isolated.");
  element("latency").hidden = false;
}

function measured() {
  const who = { by: element("by").value || "selfcheck.html", device: element("device").value || "-" };
  return measurements(classifier, who, timing, answers);
}

function download() {
  const blob = new Blob([JSON.stringify(measured(), null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "measurements.json";
  link.click();
  // The browser reads it after the click has been dealt with.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function judgeFolder() {
  const pictures = Array.from(element("folder").files, (file) => ({
    path: file.webkitRelativePath,
    file,
  }));
  element("folder").disabled = true;
  const say = (text) => {
    element("accuracy").textContent = text;
  };
  const found = await answerPictures(classifier, pictures, (fraction) => {
    say(`Answering the pictures: ${Math.round(fraction * 100)} %`);
  });
  answers = found.answers;
  const share = answers.length ? ((100 * found.right) / answers.length).toFixed(1) : "0.0";
  say(
    `${found.right} of ${answers.length} pictures answered right (${share} %)` +
      (found.skipped.length ? `; ${found.skipped.length} files left out:` : "."),
  );
  element("skipped").replaceChildren();
  for (const detail of few(found.skipped)) {
    added(element("skipped"), "li", detail).dir = "auto";
  }
  element("folder").disabled = false;
  await report();
}

/** Posts what is known to the address that was asked for, if it is one of this server. */
async function report() {
  const address = new URL(query.get("report") ?? "", location.href);
  if (query.has("report") && address.origin === location.origin) {
    const body = JSON.stringify({
      passed: document.body.className === "pass",
      checks,
      measurements: classifier && timing && measured(),
    });
    await fetch(address, { method: "POST", body, headers: { "Content-Type": "application/json" } });
  }
}

async function checkAll() {
  await loaded();
  const about = await readGoldens(new URL("../goldens/", location.href));
  showFacts(about);
  show(checkLabels(classifier, about));
  const tensors = await checkTensors(classifier, about, working("Level A: known inputs"));
  show(tensors);
  const passed = tensors.status === "pass";
  show(await checkPictures(classifier, about, passed, working("Level B: pictures")));
  const least = { minSeconds: Number(query.get("seconds") ?? SECONDS), minRuns: MIN_RUNS };
  timing = await timeCalls(classifier, about, least, working("Timing single pictures"));
  showTiming();
}

async function main() {
  element("device").value = `unknown device (${navigator.platform || "unknown platform"})`;
  const contract = await (await fetch("contract.json")).json();
  element("title").textContent = contract.title;
  document.title = `Self-check: ${contract.title}`;
  try {
    await checkAll();
  } catch (error) {
    if (!checks.some((check) => check.status === "fail")) {
      const message = `The checks did not come to their end: ${step || "the goldens were not read"}.`;
      const details = [String(error?.message ?? error)];
      show({ level: "page", name: "Self-check", status: "fail", message, details });
    }
  }
  element("progress").hidden = true;
  const failed = checks.filter((check) => check.status === "fail");
  document.body.className = failed.length ? "fail" : "pass";
  const all = checks.every((check) => check.status === "pass");
  element("verdict").textContent = failed.length
    ? `Failed: ${failed.map((check) => check.name).join(", ")}`
    : `Passed: this browser answers as the judged model does${all ? "" : " (not everything checked)"}`;
  element("folder").disabled = element("download").disabled = timing === null;
  element("folder").addEventListener("change", judgeFolder);
  element("download").addEventListener("click", download);
  await report();
}

main();
