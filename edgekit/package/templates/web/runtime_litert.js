// LiteRT.js behind one interface: `run` from the values of one input to the scores.

/**
 * Opens a model.
 *
 * @param {Uint8Array} bytes The model file.
 * @param {{base: string, shape: number[], threads: number}} options The folder of the runtime's
 *     files, the shape of the input and the number of threads.
 */
export async function openModel(bytes, { base, shape, threads }) {
  const { Tensor, getGlobalLiteRtPromise, loadAndCompile, loadLiteRt } = await import(
    "@litertjs/core"
  );
  // The runtime is started once for a page, perhaps by somebody else.
  await (getGlobalLiteRtPromise() ?? loadLiteRt(base, { threads: threads > 1 }));
  const model = await loadAndCompile(bytes, {
    accelerator: "wasm",
    cpuOptions: { numThreads: threads },
  });
  return {
    threads,
    run: async (values) => {
      const tensor = new Tensor(values, shape);
      const results = await model.run([tensor]);
      const scores = Float32Array.from(await results[0].data());
      // The heap of WebAssembly is not garbage-collected.
      tensor.delete();
      results.forEach((result) => result.delete());
      return scores;
    },
    close: () => model.delete(),
  };
}
