// ONNX Runtime Web behind one interface: `run` from the values of one input to the scores.

/**
 * Opens a model.
 *
 * @param {Uint8Array} bytes The model file.
 * @param {{base: string, shape: number[], threads: number}} options The folder of the runtime's
 *     files, the shape of the input and the number of threads.
 */
export async function openModel(bytes, { base, shape, threads }) {
  const ort = await import("onnxruntime-web/wasm");
  ort.env.wasm.wasmPaths = base;
  // The runtime is started once for a page; a later number has no effect.
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const [input] = session.inputNames;
  const [output] = session.outputNames;
  return {
    threads,
    run: async (values) => {
      const results = await session.run({ [input]: new ort.Tensor("float32", values, shape) });
      return Float32Array.from(results[output].data);
    },
    close: () => session.release(),
  };
}
