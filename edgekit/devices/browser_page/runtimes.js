// Two runtimes behind one interface: {shape, columns, run}. `run` takes the tensor values of one
// image and resolves to a copy of the scores; both are Float32Array.

/** An error in the three parts of edgekit.errors; `error` names the class there. */
export class Failure extends Error {
  constructor(error, received, expected, remedy) {
    super(received);
    this.parts = { error, received, expected, remedy };
  }
}

/**
 * Opens a model.
 * @param {string} runtime "onnxruntime-web" or "litert-js".
 * @param {Uint8Array} bytes The model file.
 * @param {number} threads Threads the runtime may use.
 * @param {?number} output Position of the output that is read; null if it is the only one.
 * @throws {Failure} If the runtime refuses the model, or it is no float32 classifier.
 */
export function openModel(runtime, bytes, threads, output) {
  const open = { "onnxruntime-web": openOnnx, "litert-js": openLiteRt }[runtime];
  return open(bytes, threads, output);
}

async function openOnnx(bytes, threads, position) {
  const ort = await import("onnxruntime-web");
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = packageFolder("onnxruntime-web/dist/");
  const options = { executionProviders: ["wasm"] };
  const session = await refusing("onnxruntime-web", () =>
    ort.InferenceSession.create(bytes, options),
  );
  const describe = ({ name, type, shape }) => ({ name, dtype: type, shape: [...shape] });
  const [input, output] = classifier(
    session.inputMetadata.map(describe),
    session.outputMetadata.map(describe),
    position,
  );
  // A free batch dimension has a name in place of a number.
  const shape = [1, ...input.shape.slice(1)];
  return {
    shape,
    columns: output.shape.at(-1),
    run: async (values) => {
      const feeds = { [input.name]: new ort.Tensor("float32", values, shape) };
      const scores = (await session.run(feeds))[output.name];
      return scores.data;
    },
  };
}

async function openLiteRt(bytes, threads, position) {
  const errors = collectErrors();
  const { loadLiteRt, loadAndCompile, Tensor } = await import("@litertjs/core");
  await loadLiteRt(packageFolder("@litertjs/core/wasm/"), { threads: threads > 1 });
  const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
  const details = ({ name, dtype, shape }) => ({ name, dtype, shape: [...shape] });
  const [model, inputs, outputs] = await refusing("LiteRT.js", async () => {
    const compiled = await loadAndCompile(bytes, options);
    return [
      compiled,
      compiled.getInputDetails().map(details),
      compiled.getOutputDetails().map(details),
    ];
  });
  const [input, output] = classifier(inputs, outputs, position);
  if (input.shape[0] !== 1) {
    throw new Failure(
      "IntegrityError",
      `input ${input.name} with a dynamic batch, shape [${input.shape}]`,
      "a static batch of 1: LiteRT.js runs no dynamic shapes",
      "export with a fixed input signature of batch 1",
    );
  }
  const run = async (values) => {
    const tensor = new Tensor(values, input.shape);
    const results = await model.run([tensor]);
    const scores = await results[position ?? 0].data();
    // The heap of WebAssembly is not garbage-collected.
    tensor.delete();
    results.forEach((result) => result.delete());
    if (errors.length) {
      throw new Error(errors.join(" "));
    }
    return scores;
  };
  const size = input.shape.reduce((product, length) => product * length);
  await refusing("LiteRT.js", () => run(new Float32Array(size)));
  return { shape: input.shape, columns: output.shape.at(-1), run };
}

/**
 * Returns an array that fills with the errors that LiteRT.js reports.
 *
 * Version 2.5.3 reports an operator that it does not have, or tensors that it cannot allocate, on
 * the console only, and then answers with what happens to be in memory.
 */
function collectErrors() {
  const errors = [];
  for (const level of ["debug", "log", "info", "warn", "error"]) {
    const write = console[level].bind(console);
    console[level] = (...words) => {
      const line = words.join(" ");
      if (line.startsWith("ERROR:") && errors.length < 3) {
        errors.push(line);
      }
      write(...words);
    };
  }
  return errors;
}

function packageFolder(path) {
  return new URL(`packages/${path}`, document.baseURI).href;
}

/** Runs `open` and turns what a runtime throws into a refusal of the model. */
async function refusing(name, open) {
  try {
    return await open();
  } catch (error) {
    const text = String(error?.message ?? error);
    if (/element type u?int\d+ is not supported/i.test(text)) {
      throw wrongType(`${name}: ${text}`);
    }
    throw new Failure(
      "IntegrityError",
      `${name} refuses the model: ${text}`,
      "a model that this runtime can load",
      "export it again with operators that this runtime has",
    );
  }
}

/** Returns the only input, and the output that is read. */
function classifier(inputs, outputs, position) {
  const known = position === null ? outputs.length === 1 : position < outputs.length;
  if (inputs.length !== 1 || !known) {
    throw new Failure(
      "IntegrityError",
      `${inputs.length} inputs and ${outputs.length} outputs`,
      "one input and one output",
      "export the classifier alone, without other heads",
    );
  }
  const output = outputs[position ?? 0];
  const ends = [inputs[0], output];
  for (const { name, dtype, shape } of ends) {
    if (dtype !== "float32") {
      throw wrongType(`${name} of type ${dtype} and shape [${shape}]`);
    }
  }
  const columns = output.shape.at(-1);
  if (!Number.isInteger(columns) || columns < 1) {
    throw new Failure(
      "IntegrityError",
      `output ${output.name} of shape [${output.shape}]`,
      "shape [1, classes], one score per class",
      "export the classifier with its final layer and a batch of one",
    );
  }
  return ends;
}

function wrongType(found) {
  return new Failure(
    "IntegrityError",
    found,
    "float32 input and output, which is what browsers' runtimes take",
    'export with io = "float32"; the arithmetic inside may stay int8',
  );
}
