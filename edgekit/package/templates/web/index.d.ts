/** A picture: a file, or whatever holds decoded pixels. */
export type Picture =
  | Blob
  | HTMLImageElement
  | HTMLCanvasElement
  | HTMLVideoElement
  | OffscreenCanvas
  | ImageBitmap
  | ImageData
  | VideoFrame;

export interface Answer {
  /** Name of the class; any text, so never use it as HTML. */
  readonly label: string;
  /** Number of the class, which is that of the model's output. */
  readonly index: number;
  /** The model's own output. */
  readonly score: number;
  /** Whether such an answer counts; if the first one does not, the picture is of no class. */
  readonly accepted: boolean;
}

export interface LoadOptions {
  /** Address of the folder with the runtime's .wasm files. */
  readonly runtimeBase: string | URL;
  /** Address of the model. Defaults to the file beside this module. */
  readonly modelUrl?: string | URL;
  /**
   * Threads of the runtime. Defaults to the number that the model was judged with; more than one
   * need a cross-origin isolated page.
   */
  readonly threads?: number;
}

/** A loaded model; comes from `load`. */
export interface Classifier {
  /** Names of the classes in the order of the outputs; any text, so never use them as HTML. */
  readonly labels: readonly string[];
  /** Height, width and channels of the input. */
  readonly inputShape: readonly [number, number, 1 | 3];
  /** SHA-256 of the model in hex; it was checked. */
  readonly sha256: string;
  /** Package and version of the runtime that the model was judged with. */
  readonly runtime: { readonly name: string; readonly package: string; readonly version: string };
  /** How far outputs may be from those of another processor, as a share of the largest. */
  readonly toleranceShare: number;
  /** Few pictures of no class have a score above this; null if nobody knows such a score. */
  readonly scoreThreshold: number | null;
  /** Threads that the runtime was asked for. */
  readonly threads: number;
  /** Answers one picture with every class, the most likely first. */
  classify(source: Picture): Promise<Answer[]>;
  /** Turns a picture into the height x width x channels values of the input tensor. */
  preprocess(source: Picture): Promise<Float32Array>;
  /** Runs the model on the values of one input tensor; one score for each class. */
  run(values: Float32Array): Promise<Float32Array>;
  /** Returns whether an answer with this score counts. */
  accepts(score: number): boolean;
  /** Frees the model's memory, which is not garbage-collected. */
  close(): Promise<void>;
}

/**
 * Loads the model and the runtime.
 *
 * Rejects if a file cannot be fetched, or the model's SHA-256 is not that of the judged one.
 */
export function load(options: LoadOptions): Promise<Classifier>;

/** Returns the SHA-256 of bytes in hex. */
export function digestOf(bytes: ArrayBuffer | Uint8Array): Promise<string>;
