"""Model files that ask for too much: of memory, disk or time, by what they declare or compute.

All are made by two builders, which at usual sizes make classifiers that are judged like any other:
uint8 pictures in, one float32 score per class out. The scores mean nothing.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from tiny_models import looping_body

# Messages and tables of libraries without type hints.
Untyped: TypeAlias = Any

SIDE = 8
HUGE = 10**11


class Crafted(NamedTuple):
    """A model file.

    Args:
        name: What it asks for.
        content: The whole file.
        suffix: Of its name, with the dot.
    """

    name: str
    content: bytes
    suffix: str


class Part(NamedTuple):
    """What an ONNX model computes between the mean colour "mean" (1, 3) and "more" (1, n).

    Args:
        nodes: Operators.
        constants: Initializers by name.
        functions: Functions of the domain "own".
        sparse: Sparse initializers.
    """

    nodes: tuple[Untyped, ...]
    constants: dict[str, Untyped] = {}  # noqa: RUF012 - nothing changes it
    functions: tuple[Untyped, ...] = ()
    sparse: tuple[Untyped, ...] = ()


def onnx_bytes(
    shape: tuple[int | str, ...] = (1, SIDE, SIDE, 3),
    classes: int = 3,
    part: Part | None = None,
    *,
    declared: int | None = None,
    dtypes: tuple[str, str] = ("UINT8", "FLOAT"),
) -> bytes:
    """Returns an ONNX classifier.

    Args:
        shape: Of its input. Defaults to (1, 8, 8, 3).
        classes: Scores that it computes. Defaults to 3.
        part: What it computes in between. Defaults to None: nothing.
        declared: Scores that it says it computes. Defaults to None: `classes`.
        dtypes: Element types that its input and output declare.
    """
    from onnx import TensorProto, helper, numpy_helper

    part = part or Part((helper.make_node("Identity", ["mean"], ["more"]),))
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], axes=[1, 2], keepdims=0),
        *part.nodes,
        helper.make_node("ReduceMax", ["more"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Add", ["most", "weights"], ["scores"]),
    ]
    constants = dict(part.constants)
    if not any("weights" in node.output for node in part.nodes):
        constants["weights"] = np.arange(classes, dtype=np.float32)[None]
    inner, outer = (TensorProto.DataType.Value(name) for name in dtypes)
    graph = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info("image", inner, shape)],
        [helper.make_tensor_value_info("scores", outer, (1, declared or classes))],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
            for name, value in constants.items()
        ],
        sparse_initializer=list(part.sparse),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(part.functions))
    model.ir_version = 8
    return bytes(model.SerializeToString())


def ort_bytes(content: bytes) -> bytes:
    """Returns an ONNX model in onnxruntime's own format, converted by onnxruntime itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.ort")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def _tile(times: int) -> Part:
    from onnx import helper

    repeats = np.array([1, times], np.int64)
    return Part((helper.make_node("Tile", ["mean", "repeats"], ["more"]),), {"repeats": repeats})


def _expand(times: int) -> Part:
    from onnx import helper

    nodes = (
        helper.make_node("Expand", ["mean", "wide"], ["cube"]),
        helper.make_node("ReduceMax", ["cube"], ["more"], axes=[0], keepdims=0),
    )
    return Part(nodes, {"wide": np.array([times, 1, 3], np.int64)})


def _constant_of_shape(count: int) -> Part:
    """A constant that onnxruntime computes while it loads the model."""
    from onnx import helper

    nodes = (
        helper.make_node("ConstantOfShape", ["wide"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], axes=[0], keepdims=0),
        helper.make_node("Add", ["mean", "zero"], ["more"]),
    )
    return Part(nodes, {"wide": np.array([count, 1], np.int64)})


def _growing(factor: int) -> Part:
    """Gives as many scores as the picture is bright, which no runtime knows beforehand."""
    from onnx import TensorProto, helper

    nodes = (
        helper.make_node("ReduceMax", ["mean"], ["top"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["top", "factor"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["times"], to=TensorProto.INT64),
        helper.make_node("Max", ["times", "one"], ["columns"]),
        helper.make_node("Concat", ["one", "columns"], ["repeats"], axis=0),
        helper.make_node("Tile", ["mean", "repeats"], ["weights"]),
        helper.make_node("Identity", ["mean"], ["more"]),
    )
    one = np.ones(1, np.int64)
    return Part(nodes, {"factor": np.array(factor, np.float32), "one": one})


def _loop(turns: int) -> Part:
    from onnx import helper

    node = helper.make_node("Loop", ["turns", "yes", "mean"], ["more"], body=looping_body())
    return Part((node,), {"turns": np.array(turns, np.int64), "yes": np.array(True)})


def _declared(dims: tuple[int, ...], dtype: str = "FLOAT") -> Part:
    """A constant that declares its shape and holds one value."""
    from onnx import TensorProto, helper

    kind = TensorProto.DataType.Value(dtype)
    tensor = TensorProto(name="declared", data_type=kind, dims=dims)
    if dtype == "STRING":
        tensor.string_data.append(b"x")
        nodes = [helper.make_node("Identity", ["mean"], ["more"])]
    else:
        tensor.float_data.append(0.0)
        nodes = [
            helper.make_node("ReduceMax", ["declared"], ["top"], keepdims=0),
            helper.make_node("Add", ["mean", "top"], ["more"]),
        ]
    return Part(tuple(nodes), {"declared": tensor})


def _sparse(side: int) -> Part:
    """A square matrix that is declared with one value and held in full by the runtime."""
    from onnx import helper, numpy_helper

    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "sparse_indices")
    nodes = (
        helper.make_node("ReduceMax", ["sparse"], ["top"], keepdims=0),
        helper.make_node("Add", ["mean", "top"], ["more"]),
    )
    tensor = helper.make_sparse_tensor(values, indices, (side, side))
    return Part(nodes, sparse=(tensor,))


def _nested(depth: int) -> bytes:
    """Returns what puts branches within branches behind the bytes of a model.

    Written as protobuf's wire format has it: its own library refuses to write messages that deep.
    """
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

    inner = helper.make_node("Identity", ["mean"], ["leaf"])
    said = helper.make_tensor_value_info("leaf", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([inner], "g", [], [said]).SerializeToString()
    node = b""
    for level in range(depth):
        deep = AttributeProto(name="then_branch", type=AttributeProto.GRAPH)
        flat = helper.make_attribute("else_branch", helper.make_graph([inner], "g", [], [said]))
        said = helper.make_tensor_value_info(f"out{level}", TensorProto.FLOAT, [1, 3])
        node = NodeProto(op_type="If", input=["deep"], output=[f"out{level}"]).SerializeToString()
        node += _field(5, deep.SerializeToString() + _field(6, graph))
        node += _field(5, flat.SerializeToString())
        graph = GraphProto(name="g", output=[said]).SerializeToString() + _field(1, node)
        said = helper.make_tensor_value_info("leaf", TensorProto.FLOAT, [1, 3])
    yes = TensorProto(name="deep", data_type=TensorProto.BOOL, int32_data=[1]).SerializeToString()
    return _field(7, _field(1, node) + _field(5, yes))


def _field(number: int, content: bytes) -> bytes:
    """Returns a message inside another one, in protobuf's wire format."""
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def _functions(levels: int) -> Part:
    """Functions that each call the next one twice: 2 to the power of `levels` operators."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for level in range(levels):
        called = (f"f{level + 1}", "own") if level < levels - 1 else ("Sin", "")
        nodes = [
            helper.make_node(called[0], ["x"], ["y"], domain=called[1]),
            helper.make_node(called[0], ["y"], ["z"], domain=called[1]),
        ]
        made.append(helper.make_function("own", f"f{level}", ["x"], ["z"], nodes, opsets))
    return Part((helper.make_node("f0", ["mean"], ["more"], domain="own"),), functions=tuple(made))


def _recursive() -> Part:
    """A function that calls itself."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    node = helper.make_node("f", ["x"], ["y"], domain="own")
    made = helper.make_function("own", "f", ["x"], ["y"], [node], opsets)
    return Part((helper.make_node("f", ["mean"], ["more"], domain="own"),), functions=(made,))


def _external() -> Part:
    from onnx import TensorProto, helper

    tensor = TensorProto(name="away", data_type=TensorProto.FLOAT, dims=(HUGE,))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/dev/zero"), ("length", str(4 * HUGE))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = (
        helper.make_node("ReduceMax", ["away"], ["top"], keepdims=0),
        helper.make_node("Add", ["mean", "top"], ["more"]),
    )
    return Part(nodes, {"away": tensor})


class Step(NamedTuple):
    """One operator of a TFLite model, between the mean colour "mean" (1, 3) and "more".

    Args:
        operator: As TFLite names it.
        inputs: Names of tensors.
        output: Name, shape and type of its output.
        options: Its options, named and with the fields that differ from their defaults.
    """

    operator: str
    inputs: tuple[str, ...]
    output: tuple[str, tuple[int, ...], str]
    options: tuple[str, dict[str, Any]] | None = None


def tflite_bytes(
    shape: tuple[int, ...] = (1, SIDE, SIDE, 3),
    classes: int = 3,
    steps: tuple[Step, ...] = (),
    constants: dict[str, Untyped] | None = None,
    *,
    signature: tuple[int, ...] | None = None,
    declared: int | None = None,
    dtypes: tuple[str, str] = ("UINT8", "FLOAT32"),
    shapes: dict[str, tuple[int, ...]] | None = None,
    sparse: str | None = None,
    bodies: tuple[tuple[Step, ...], ...] = (),
    external: bool = False,
) -> bytes:
    """Returns a TFLite classifier.

    Args:
        shape: Of its input. Defaults to (1, 8, 8, 3).
        classes: Scores that it computes. Defaults to 3.
        steps: What it computes between "mean" and "more". Defaults to nothing.
        constants: Arrays by name, for the steps. Defaults to none.
        signature: Shape signature of its input. Defaults to None: there is none.
        declared: Scores that it says it computes. Defaults to None: `classes`.
        dtypes: Element types that its input and output declare.
        shapes: Shapes that constants declare instead of their own. Defaults to none.
        sparse: Name of a constant that declares to be sparse. Defaults to None.
        bodies: Further subgraphs from "x" (1, 3) to the output of their last step.
        external: Whether it names a buffer in another file.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    known = {
        "axes": np.array([1, 2], "<i4"),
        "last": np.array([1], "<i4"),
        "weights": np.arange(classes, dtype="<f4")[None],
        **(constants or {}),
    }
    writer = _TfliteWriter(schema.ModelT(), known, shapes or {}, sparse)
    more = steps[-1].output[0] if steps else "mean"
    main = (
        Step("CAST", ("image",), ("real", shape, "FLOAT32"), ("CastOptions", {})),
        Step("MEAN", ("real", "axes"), ("mean", (1, 3), "FLOAT32"), ("ReducerOptions", {})),
        *steps,
        Step(
            "REDUCE_MAX", (more, "last"), ("most", (1, 1), "FLOAT32"),
            ("ReducerOptions", {"keepDims": True}),
        ),
        Step(
            "ADD", ("most", "weights"), ("scores", (1, declared or classes), dtypes[1]),
            ("AddOptions", {}),
        ),
    )  # fmt: skip
    writer.add(("image", shape, dtypes[0]), main)
    for body in bodies:
        writer.add(("x", (1, 3), "FLOAT32"), body)
    model = writer.model
    model.version = 3
    if signature is not None:
        model.subgraphs[0].tensors[0].shapeSignature = list(signature)
    if external:
        away = schema.ExternalBufferT()
        away.id, away.group, away.offset, away.length = 1, 0, 0, HUGE
        group = schema.ExternalBufferGroupT()
        group.name = b"/dev/zero"
        model.externalBuffers, model.externalBufferGroups = [away], [group]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _TfliteWriter:
    """Adds subgraphs to a TFLite model; the arguments are those of `tflite_bytes`."""

    def __init__(
        self,
        model: Untyped,
        constants: dict[str, Untyped],
        shapes: dict[str, tuple[int, ...]],
        sparse: str | None,
    ) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.model = schema, model
        self.constants, self.shapes, self.sparse = constants, shapes, sparse
        model.operatorCodes, model.buffers, model.subgraphs = [], [schema.BufferT()], []

    def add(self, first: tuple[str, tuple[int, ...], str], steps: tuple[Step, ...]) -> None:
        """Adds a subgraph from a tensor to the output of the last step."""
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = [], [], b"main"
        index: dict[str, int] = {}

        def tensor(name: str, shape: tuple[int, ...], dtype: str, buffer: int = 0) -> int:
            made = self.schema.TensorT()
            made.name, made.shape, made.buffer = name.encode(), list(shape), buffer
            made.type = getattr(self.schema.TensorType, dtype)
            if name == self.sparse:
                made.sparsity = _sparsity(self.schema, shape)
            graph.tensors.append(made)
            index[name] = len(graph.tensors) - 1
            return index[name]

        def constant(name: str) -> int:
            value = np.asarray(self.constants[name])
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            shape = self.shapes.get(name, value.shape)
            return tensor(name, shape, value.dtype.name.upper(), len(self.model.buffers) - 1)

        tensor(*first)
        for step in steps:
            operator = self._operator(step)
            operator.inputs = [index[n] if n in index else constant(n) for n in step.inputs]
            operator.outputs = [tensor(*step.output)]
            graph.operators.append(operator)
        graph.inputs, graph.outputs = [0], operator.outputs
        self.model.subgraphs.append(graph)

    def _operator(self, step: Step) -> Untyped:
        """Returns an operator without its ends; its code is added to the model."""
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, step.operator)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        if step.options is not None:
            kind, fields = step.options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self.schema, f"{kind}T")()
            for field, value in fields.items():
                setattr(operator.builtinOptions, field, value)
        return operator


def _sparsity(schema: Untyped, shape: tuple[int, ...]) -> Untyped:
    """Returns the sparsity of a matrix of which one value is held."""
    rows, columns = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    rows.format, rows.denseSize = schema.DimensionType.DENSE, shape[0]
    columns.format = schema.DimensionType.SPARSE_CSR
    columns.arraySegmentsType = columns.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    columns.arraySegments, columns.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
    columns.arraySegments.values = [0] + [1] * shape[0] if shape[0] < 10**4 else [0, 1]
    columns.arrayIndices.values = [0]
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder, sparsity.dimMetadata = [0, 1], [rows, columns]
    return sparsity


def _lite_tile(times: int) -> dict[str, Any]:
    step = Step("TILE", ("mean", "repeats"), ("more", (1, 3), "FLOAT32"))
    return {"steps": (step,), "constants": {"repeats": np.array([1, times], "<i4")}}


def _lite_fill(count: int) -> dict[str, Any]:
    """A tensor between the ends as large as a constant says."""
    steps = (
        Step("FILL", ("wide", "one"), ("ones", (count, 3), "FLOAT32"), ("FillOptions", {})),
        Step("ADD", ("mean", "ones"), ("sums", (count, 3), "FLOAT32"), ("AddOptions", {})),
        Step(
            "REDUCE_MAX", ("sums", "first"), ("more", (1, 3), "FLOAT32"),
            ("ReducerOptions", {"keepDims": True}),
        ),
    )  # fmt: skip
    constants = {
        "wide": np.array([count, 3], "<i4"),
        "one": np.array(1, "<f4"),
        "first": np.array([0], "<i4"),
    }
    return {"steps": steps, "constants": constants}


def lite_while(bound: float) -> dict[str, Any]:
    """A loop that goes on while the mean colour is below a number that it stays below."""
    step = Step(
        "WHILE", ("mean",), ("more", (1, 3), "FLOAT32"),
        ("WhileOptions", {"condSubgraphIndex": 1, "bodySubgraphIndex": 2}),
    )  # fmt: skip
    condition = (
        Step(
            "REDUCE_MAX", ("x", "both"), ("top", (), "FLOAT32"),
            ("ReducerOptions", {"keepDims": False}),
        ),
        Step("LESS", ("top", "bound"), ("go", (), "BOOL"), ("LessOptions", {})),
    )  # fmt: skip
    body = (Step("ABS", ("x",), ("y", (1, 3), "FLOAT32"), ("AbsOptions", {})),)
    constants = {"both": np.array([0, 1], "<i4"), "bound": np.array(bound, "<f4")}
    return {"steps": (step,), "constants": constants, "bodies": (condition, body)}


def _lite_recursive() -> dict[str, Any]:
    """A branch into a subgraph that branches into itself."""
    fields = {"thenSubgraphIndex": 1, "elseSubgraphIndex": 1}
    step = Step("IF", ("yes", "mean"), ("more", (1, 3), "FLOAT32"), ("IfOptions", fields))
    again = (Step("IF", ("yes", "x"), ("y", (1, 3), "FLOAT32"), ("IfOptions", fields)),)
    return {"steps": (step,), "constants": {"yes": np.array(True)}, "bodies": (again,)}


def _lite_constant(rows: int, sparse: bool) -> dict[str, Any]:
    """A constant that declares more than it holds; DENSIFY makes a sparse one dense."""
    matrix = ("matrix", (rows, rows), "FLOAT32")
    steps = (
        *((Step("DENSIFY", ("held",), matrix, ("DensifyOptions", {})),) * sparse),
        Step(
            "REDUCE_MAX", ("matrix" if sparse else "held", "both"), ("top", (), "FLOAT32"),
            ("ReducerOptions", {"keepDims": False}),
        ),
        Step("ADD", ("mean", "top"), ("more", (1, 3), "FLOAT32"), ("AddOptions", {})),
    )  # fmt: skip
    return {
        "steps": steps,
        "constants": {"held": np.ones(1, "<f4"), "both": np.array([0, 1], "<i4")},
        "shapes": {"held": (rows, rows)},
        "sparse": "held" if sparse else None,
    }


def crafted(classes: int = 3) -> list[Crafted]:
    """Returns the files; each shall be refused in one sentence, and soon.

    Args:
        classes: Scores of those whose output is not what is wrong. Defaults to 3.
    """

    def onnx(part: Part | None = None, **changed: Any) -> bytes:
        return onnx_bytes(**{"classes": classes, "part": part, **changed})

    def lite(**changed: Any) -> bytes:
        return tflite_bytes(**{"classes": classes, **changed})

    sides: dict[str, tuple[int, int]] = {
        "input-100000": (100_000, 100_000),
        "input-9000": (9000, 9000),
        "input-one-long-side": (8, 2**31 - 1),
        "input-0": (0, 0),
        "input-negative": (-5, SIDE),
    }
    made = [
        *(Crafted(name, onnx(shape=(1, *size, 3)), ".onnx") for name, size in sides.items()),
        Crafted("input-dynamic", onnx(shape=(1, "height", "width", 3)), ".onnx"),
        Crafted("input-4-channels", onnx(shape=(1, SIDE, SIDE, 4)), ".onnx"),
        Crafted("input-string", onnx(dtypes=("STRING", "FLOAT")), ".onnx"),
        Crafted("output-string", onnx(dtypes=("UINT8", "STRING")), ".onnx"),
        Crafted("output-1e9", onnx(declared=10**9), ".onnx"),
        Crafted("output-larger-than-said", onnx(_tile(1), classes=10**6, declared=3), ".onnx"),
        Crafted("output-grows", onnx(_growing(10**5), declared=classes), ".onnx"),
        Crafted("endless", onnx(_loop(2**62)), ".onnx"),
        Crafted("tile", onnx(_tile(HUGE)), ".onnx"),
        Crafted("expand", onnx(_expand(HUGE)), ".onnx"),
        Crafted("constant-of-shape", onnx(_constant_of_shape(HUGE)), ".onnx"),
        Crafted("declared-no-data", onnx(_declared((10**6, 10**6))), ".onnx"),
        Crafted("declared-strings", onnx(_declared((10**6, 10**6), "STRING")), ".onnx"),
        Crafted("sparse", onnx(_sparse(10**6)), ".onnx"),
        Crafted("nested-60", onnx() + _nested(60), ".onnx"),
        Crafted("functions-doubling", onnx(_functions(60)), ".onnx"),
        Crafted("function-of-itself", onnx(_recursive()), ".onnx"),
        Crafted("external-data", onnx(_external()), ".onnx"),
    ]
    made += [
        Crafted(name, ort_bytes(onnx(shape=(1, *sides[name], 3))), ".ort")
        for name in ("input-100000", "input-9000")
    ]
    made += [
        Crafted("output-1e6", ort_bytes(onnx(classes=10**6)), ".ort"),
        Crafted("endless", ort_bytes(onnx(_loop(2**62))), ".ort"),
        Crafted("tile", ort_bytes(onnx(_tile(HUGE))), ".ort"),
    ]
    made += [
        *(Crafted(name, lite(shape=(1, *size, 3)), ".tflite") for name, size in sides.items()),
        Crafted(
            "input-dynamic", lite(shape=(1, 1, 1, 3), signature=(1, -1, -1, 3)), ".tflite"
        ),
        Crafted(
            "input-other-signature",
            lite(shape=(1, 10**5, 10**5, 3), signature=(1, SIDE, SIDE, 3)),
            ".tflite",
        ),
        Crafted("input-string", lite(dtypes=("STRING", "FLOAT32")), ".tflite"),
        Crafted("output-string", lite(dtypes=("UINT8", "STRING")), ".tflite"),
        Crafted("output-1e9", lite(declared=10**9), ".tflite"),
        Crafted("output-larger-than-said", lite(classes=10**6, declared=3), ".tflite"),
        Crafted("endless", lite(**lite_while(1e30)), ".tflite"),
        Crafted("tile", lite(**_lite_tile(2**30)), ".tflite"),
        Crafted("fill", lite(**_lite_fill(2**30)), ".tflite"),
        Crafted("fill-8-gigabytes", lite(**_lite_fill(7 * 10**8)), ".tflite"),
        Crafted("declared-no-data", lite(**_lite_constant(40_000, sparse=False)), ".tflite"),
        Crafted("sparse", lite(**_lite_constant(10**6, sparse=True)), ".tflite"),
        Crafted("branch-of-itself", lite(**_lite_recursive()), ".tflite"),
        Crafted("external-data", lite(external=True), ".tflite"),
    ]  # fmt: skip
    return made


def allowed(classes: int = 3) -> list[Crafted]:
    """Returns their twins: the same builders at usual sizes, each of which is judged.

    Args:
        classes: As in `crafted`.
    """

    def onnx(part: Part | None = None, **changed: Any) -> bytes:
        return onnx_bytes(**{"classes": classes, "part": part, **changed})

    def lite(**changed: Any) -> bytes:
        return tflite_bytes(**{"classes": classes, **changed})

    return [
        Crafted("plain", onnx(), ".onnx"),
        Crafted("input-600", onnx(shape=(1, 600, 600, 3)), ".onnx"),
        *((Crafted("output-grows", onnx(_growing(0)), ".onnx"),) * (classes == 3)),
        Crafted("endless", onnx(_loop(20)), ".onnx"),
        Crafted("tile", onnx(_tile(1000)), ".onnx"),
        Crafted("expand", onnx(_expand(1000)), ".onnx"),
        Crafted("constant-of-shape", onnx(_constant_of_shape(1000)), ".onnx"),
        Crafted("declared-no-data", onnx(_declared((1, 1))), ".onnx"),
        Crafted("sparse", onnx(_sparse(10)), ".onnx"),
        Crafted("nested-5", onnx() + _nested(5), ".onnx"),
        Crafted("functions-doubling", onnx(_functions(5)), ".onnx"),
        Crafted("plain", ort_bytes(onnx()), ".ort"),
        Crafted("tile", ort_bytes(onnx(_tile(1000))), ".ort"),
        Crafted("plain", lite(), ".tflite"),
        Crafted("input-600", lite(shape=(1, 600, 600, 3)), ".tflite"),
        Crafted("endless", lite(**lite_while(-1.0)), ".tflite"),
        Crafted("tile", lite(**_lite_tile(1000)), ".tflite"),
        Crafted("fill", lite(**_lite_fill(1000)), ".tflite"),
        Crafted("declared-no-data", lite(**_lite_constant(1, sparse=False)), ".tflite"),
        Crafted("sparse", lite(**_lite_constant(10, sparse=True)), ".tflite"),
    ]
