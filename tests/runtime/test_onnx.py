"""ONNX: exported segments, the file that exits early by itself, and what the engine really ran."""

import importlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience, Policy
from offramp.runtime import ENGINES, EngineOptions, Prediction, compile_runner
from offramp.runtime.engines import Program
from offramp.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from offramp.runtime.exporting import write_onnx
from offramp.runtime.extras import require
from offramp.runtime.parts import Layout, Part, build_parts
from offramp.runtime.single_onnx import write_single
from offramp.runtime.stages import Flow, Stages

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Export(NamedTuple):
    """A policy's parts, their files, the single file, and what torch answers."""

    policy: Policy
    parts: list[Part]
    files: list[Path]
    single: Path
    wanted: Prediction

    @property
    def layouts(self) -> list[Layout]:
        return [part.layout for part in self.parts]


@pytest.fixture(scope="module", params=["confidence", "patience"])
def export(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model: MultiExitModel,
    images: Tensor,
) -> Export:
    if request.param == "confidence":
        return request.getfixturevalue("confident")
    return exported(model, Patience(1), tmp_path_factory.mktemp("patience"), images)


@pytest.fixture(scope="module")
def confident(
    tmp_path_factory: pytest.TempPathFactory,
    model: MultiExitModel,
    images: Tensor,
    policy: Confidence,
) -> Export:
    return exported(model, policy, tmp_path_factory.mktemp("confident"), images)


def exported(model: MultiExitModel, policy: Policy, folder: Path, images: Tensor) -> Export:
    parts = build_parts(model, range(len(model.exits)), policy)
    files = OnnxRuntimeEngine().write(parts, folder)
    single = folder / "single.onnx"
    write_single(
        files,
        [part.layout for part in parts],
        single,
        memory=policy.start(1),
        metadata={"classes": json.dumps(["cat"])},
    )
    wanted = compile_runner(model, policy=policy)(images)
    return Export(policy, parts, files, single, wanted)


def test_segments_are_torchs(export: Export, images: Tensor) -> None:
    program = OnnxRuntimeEngine().open(export.files, export.layouts)
    with torch.no_grad():
        for size in (7, 1, 2, 7):  # buffers shrink and grow
            flow: tuple[Tensor, ...] = (images[:size], *export.policy.start(size))
            for segment, part in zip(program.segments, export.parts, strict=True):
                wanted, found = part(*flow), segment.call(*flow)
                for name, one, other in zip(part.layout.outputs, wanted, found, strict=True):
                    if one.is_floating_point():
                        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)
                    else:
                        assert torch.equal(other, one), name
                flow = wanted[: len(part.layout.flow)]


def run_single(session: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    said = [session.run(None, {"images": image[None].numpy()}) for image in images]
    answer, exits, score = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*said, strict=True)
    )
    return answer, exits, score


def test_the_single_file_is_the_runner(export: Export, images: Tensor) -> None:
    answer, exits, score = run_single(ort.InferenceSession(export.single), images)
    assert len(exits.unique()) > 2
    assert torch.equal(exits, export.wanted.exit)
    assert torch.equal(answer.argmax(-1), export.wanted.labels)
    torch.testing.assert_close(answer, export.wanted.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(score.isnan(), exits == len(export.parts) - 1)
    early = exits < len(export.parts) - 1
    wanted = (  # what the policy read at the exit they left at
        answer.softmax(-1).amax(-1)
        if isinstance(export.policy, Confidence)
        else answer.argmax(-1).float()
    )
    torch.testing.assert_close(score[early], wanted[early])


def test_openvino_reads_the_single_file_too(confident: Export, images: Tensor) -> None:
    ov = require("openvino", "openvino", "this test")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(str(confident.single), "CPU", settings)
    said = [compiled(image[None].numpy()) for image in images]
    assert [int(answers[1][0]) for answers in said] == confident.wanted.exit.tolist()


def test_the_single_file_says_what_it_is(export: Export) -> None:
    model = onnx.load(export.single)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == [""]  # nothing of one runtime alone
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["answer", "exit", "score"]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 32, 32]
    assert {prop.key: prop.value for prop in model.metadata_props} == {"classes": '["cat"]'}


def test_every_weight_is_stored_once(export: Export) -> None:
    modules = nn.ModuleList(export.parts)
    tensors = {tensor.data_ptr(): tensor for tensor in (*modules.parameters(), *modules.buffers())}
    weights = sum(tensor.nbytes for tensor in tensors.values())
    assert export.single.stat().st_size <= 1.1 * weights


def test_exports_keep_machines_to_themselves(export: Export) -> None:
    for file in (*export.files, export.single):
        content = file.read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content


# Counted inside the engine: ONNX Runtime's profiler writes down every node it executes.


class Profiled(OnnxRuntimeEngine):
    """The engine, with ONNX Runtime's profiler on."""

    folder: Path

    def _settings(self, ort: Any) -> Any:
        settings = super()._settings(ort)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self.folder / "profile")
        return settings


def executed(session: Any) -> list[dict[str, Any]]:
    """Every node the session has executed, with the shapes of its inputs."""
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event.get("cat") == "Node"]


def profiled(export: Export, folder: Path) -> Program:
    engine = Profiled(EngineOptions(threads=1))
    engine.folder = folder
    return engine.open(export.files, export.layouts)


def norm_rows(session: Any) -> list[int]:
    """Batch sizes the session's first LayerNorm ran with, call by call."""
    nodes = [
        node for node in executed(session) if node["name"].startswith("node_layer_norm_kernel")
    ]
    return [node["args"]["input_type_shape"][0]["float"][0] for node in nodes]


def test_exited_samples_are_not_computed(confident: Export, images: Tensor, tmp_path: Path) -> None:
    program = profiled(confident, tmp_path)
    stages, flow = Stages(program), Flow(None, (images,))
    with torch.inference_mode():
        for stage in range(len(stages)):
            rest, _ = stages.advance(stage, flow)
            flow = rest or flow
    exits = confident.wanted.exit
    ran = [norm_rows(segment.call._session) for segment in program.segments]
    assert ran == [[int((exits >= k).sum())] for k in range(len(program.segments))]
    assert ran[0] > ran[1] > ran[2] > ran[3]


def test_segments_behind_everybodys_exit_are_not_called(
    confident: Export, images: Tensor, tmp_path: Path
) -> None:
    program = profiled(confident, tmp_path)
    leavers = images[confident.wanted.exit == 1]
    stages, flow = Stages(program), Flow(None, (leavers,))
    with torch.inference_mode():
        for stage in range(len(stages)):
            rest, _ = stages.advance(stage, flow)
            if rest is None:
                break
            flow = rest
    ran = [executed(segment.call._session) for segment in program.segments]
    assert [len(nodes) > 20 for nodes in ran] == [True, True, False, False]
    assert ran[2] == ran[3] == []


@pytest.mark.parametrize("leaves", [0, 1, 2, 3])
def test_the_single_file_runs_no_branch_behind_the_exit(
    confident: Export, images: Tensor, tmp_path: Path, leaves: int
) -> None:
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(confident.single, settings)
    image = images[confident.wanted.exit == leaves][:1]
    assert int(session.run(["exit"], {"images": image.numpy()})[0][0]) == leaves
    nodes = executed(session)
    norms = [node for node in nodes if node["args"]["op_name"].endswith("LayerNormalization")]
    in_blocks, in_heads = (
        2 * (leaves + 1),
        (leaves >= 2) + (leaves >= 3),
    )  # the linear exit, the end
    assert len(norms) == in_blocks + in_heads
    segments = {name.split("/")[0] for node in nodes if "/" in (name := node["name"])}
    assert segments == {f"segment{i}" for i in range(leaves + 1)}


# How the single file is put together.


def segment_file(file: Path, weight: np.ndarray, *, last: bool) -> Layout:
    """A segment y = x W (B, 16) that is left where the sum of y is above 0, with −(−y)."""
    describe, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    inputs = "x" if last else "images"
    nodes = [
        ("MatMul", [inputs, "weight"], ["next_x"]),
        ("Neg", ["next_x"], ["minus"]),
        ("Neg", ["minus"], ["answer"]),
    ]
    outputs = [describe("answer", kind.FLOAT, ["batch", 16])]
    if not last:
        nodes += [
            ("ReduceSum", ["next_x", "axis"], ["score"]),
            ("Greater", ["score", "zero"], ["stop"]),
        ]
        outputs = [
            describe("next_x", kind.FLOAT, ["batch", 16]),
            *outputs,
            describe("stop", kind.BOOL, ["batch"]),
            describe("score", kind.FLOAT, ["batch"]),
        ]
    constants = {
        "weight": weight,
        "axis": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                op, ins, outs, name=outs[0], **({"keepdims": 0} if op == "ReduceSum" else {})
            )
            for op, ins, outs in nodes
        ],
        "segment",
        [describe(inputs, kind.FLOAT, ["batch", 16])],
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    if last:
        return Layout(2, ("x",), (), ("answer",))
    return Layout(0, (inputs,), ("x",), ("answer", "stop", "score"))


@pytest.fixture
def pieces(tmp_path: Path) -> tuple[list[Path], list[Layout], np.ndarray]:
    """Two segments with the same weight, as an encoder that repeats its layers has them."""
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    first = segment_file(files[0], weight, last=False)
    return files, [first, segment_file(files[1], weight, last=True)], weight


def test_weights_of_several_segments_are_stored_once(
    pieces: tuple[list[Path], list[Layout], np.ndarray], tmp_path: Path
) -> None:
    files, layouts, weight = pieces
    write_single(files, layouts, tmp_path / "single.onnx")
    assert (tmp_path / "single.onnx").read_bytes().count(weight.tobytes()) == 1
    session = ort.InferenceSession(tmp_path / "single.onnx")
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32)
        once = x @ weight
        stops = once.sum() > 0
        answer, exits, score = session.run(None, {"images": x})
        np.testing.assert_allclose(answer, once if stops else once @ weight, rtol=1e-4, atol=1e-5)
        assert exits == (0 if stops else 2)
        assert math.isclose(score[0], once.sum(), rel_tol=1e-4) if stops else math.isnan(score[0])


def test_what_only_leavers_need_waits_in_their_branch(
    pieces: tuple[list[Path], list[Layout], np.ndarray], tmp_path: Path
) -> None:
    files, layouts, _ = pieces
    write_single(files, layouts, tmp_path / "single.onnx")
    graph = onnx.load(tmp_path / "single.onnx").graph
    assert [node.op_type for node in graph.node] == ["MatMul", "ReduceSum", "Greater", "If"]
    branches = {attribute.name: attribute.g for attribute in graph.node[-1].attribute}
    kinds = Counter(node.op_type for node in branches["then_branch"].node)
    assert kinds == {"Neg": 2, "Identity": 2, "Constant": 1}


class Attending(nn.Module):
    """Attention with a mask as the only input, as `F.scaled_dot_product_attention` has it."""

    layout = Layout(0, ("images",), (), ("answer",))

    def __init__(self, mask: Tensor | None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.options = options
        self.example = (torch.randn(2, 3, 5, 8),)

    def forward(self, *flow: Tensor) -> tuple[Tensor]:
        x = flow[0]
        return (F.scaled_dot_product_attention(x, x * 2, x + 1, self.mask, **self.options),)


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (None, {"scale": 0.3}),
        (torch.linspace(-2, 2, 75).view(3, 5, 5), {}),
        (torch.ones(5, 5, dtype=torch.bool).tril(), {"scale": 2.0}),
    ],
    ids=["plain", "scale", "bias", "bool"],
)
def test_attention_is_two_products_and_a_softmax(
    mask: Tensor | None, options: dict[str, float], tmp_path: Path
) -> None:
    part: Any = Attending(mask, **options).eval()
    write_onnx(part, tmp_path / "attention.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "attention.onnx").graph.node)
    assert (kinds["MatMul"], kinds["Softmax"], kinds["Shape"], kinds["Reshape"]) == (2, 1, 0, 0)
    program = OnnxRuntimeEngine().open([tmp_path / "attention.onnx"], [part.layout])
    x = torch.randn(7, 3, 5, 8)
    torch.testing.assert_close(program.segments[0].call(x), part(x), atol=1e-5, rtol=1e-5)


def test_attention_without_a_translation_names_the_segment(tmp_path: Path) -> None:
    part: Any = Attending(None, is_causal=True).eval()
    with pytest.raises(OfframpError, match=r"exit 0 cannot be expressed in ONNX.*causal"):
        write_onnx(part, tmp_path / "attention.onnx")


# int8


@pytest.fixture(scope="module")
def int8(
    tmp_path_factory: pytest.TempPathFactory, confident: Export, images: Tensor
) -> tuple[list[Path], Program]:
    engine = OnnxRuntimeEngine(EngineOptions(precision="int8", calibration=images))
    files = engine.write(confident.parts, tmp_path_factory.mktemp("int8"))
    return files, engine.open(files, confident.layouts)


def test_int8_multiplies_weights_in_int8_and_leaves_the_ends_alone(
    int8: tuple[list[Path], Program], confident: Export
) -> None:
    for file, whole in zip(int8[0], confident.files, strict=True):
        graph = onnx.load(file).graph
        made = {name: node for node in graph.node for name in node.output}
        kinds = {
            kind: [made[name].op_type if name in made else None for node in nodes for name in node]
            for kind in ("MatMul", "Gemm", "Softmax")
            if (nodes := [node.input[:2] for node in graph.node if node.op_type == kind])
        }
        quantised = Counter(kinds["MatMul"])["DequantizeLinear"] // 2
        blocks = 4  # qkv, projection and the two layers behind it
        assert quantised >= blocks
        assert "DequantizeLinear" not in [*kinds["Gemm"], *kinds["Softmax"]]
        assert file.stat().st_size < 0.6 * whole.stat().st_size


def test_int8_answers_almost_like_float(
    int8: tuple[list[Path], Program], confident: Export, images: Tensor
) -> None:
    assert int8[1].precision == "int8"
    flow: tuple[Tensor, ...] = (images,)
    with torch.no_grad():
        for segment, part in zip(int8[1].segments, confident.parts, strict=True):
            wanted, found = part(*flow), segment.call(*flow)
            place = part.layout.outputs.index("answer")
            gap = (wanted[place] - found[place]).norm() / wanted[place].norm()
            assert 0 < float(gap) < 0.1
            flow = wanted[: len(part.layout.flow)]


def test_int8_answers_do_not_depend_on_who_else_is_there(
    int8: tuple[list[Path], Program], images: Tensor
) -> None:
    first = int8[1].segments[0].call
    together, alone = first(images[:7]), first(images[:1])
    place = -3
    torch.testing.assert_close(together[place][:1], alone[place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [None, torch.empty(0, 3, 32, 32)], ids=["none", "empty"])
def test_int8_without_images_says_how_to_give_them(
    confident: Export, tmp_path: Path, given: Tensor | None
) -> None:
    engine = OnnxRuntimeEngine(EngineOptions(precision="int8", calibration=given))
    with pytest.raises(OfframpError, match=r"int8 needs images.*calibration="):
        engine.write(confident.parts, tmp_path)
    assert list(tmp_path.iterdir()) == []  # before minutes of exporting


# Bad input: one sentence each.


@pytest.mark.parametrize(
    ("missing", "purpose"),
    [
        ("onnxruntime", "ONNX Runtime engine"),
        ("onnx", "single ONNX file"),
        ("onnxscript", "ONNX export"),
    ],
)
def test_missing_libraries_name_their_extra(
    confident: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    purpose: str,
) -> None:
    def absent(name: str) -> Any:
        if name == missing:
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr("offramp.runtime.extras.import_module", absent)
    engine = OnnxRuntimeEngine()
    do = {
        "onnxruntime": lambda: engine.open(confident.files, confident.layouts),
        "onnx": lambda: write_single(confident.files, confident.layouts, tmp_path / "single.onnx"),
    }.get(missing, lambda: engine.write(confident.parts, tmp_path))
    with pytest.raises(OfframpError, match=rf"{purpose} needs {missing}.*offramp\[onnxruntime\]"):
        do()


def test_broken_files_are_named(confident: Export, tmp_path: Path) -> None:
    broken = tmp_path / "segment-0.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(OfframpError, match=r"segment-0\.onnx: ONNX Runtime cannot run it"):
        OnnxRuntimeEngine().open([broken], confident.layouts[:1])
    with pytest.raises(OfframpError, match=r"segment-0\.onnx: not an ONNX file"):
        write_single([broken], confident.layouts[:1], tmp_path / "single.onnx")


def test_operators_of_the_future_are_named(confident: Export, tmp_path: Path) -> None:
    model = onnx.load(confident.files[-1])
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "segment-3.onnx")
    with pytest.raises(OfframpError, match=r"segment-3\.onnx: ONNX Runtime cannot run it.*opset"):
        OnnxRuntimeEngine().open([tmp_path / "segment-3.onnx"], confident.layouts[-1:])


def test_images_of_another_size_are_refused(
    confident: Export, model: MultiExitModel, policy: Confidence
) -> None:
    session = ort.InferenceSession(confident.single)
    with pytest.raises(Exception, match=r"(?i)invalid dimensions"):  # the runtime's own sentence
        session.run(None, {"images": np.zeros((1, 3, 64, 64), np.float32)})
    runner = compile_runner(model, active=(), engine="onnxruntime")
    with pytest.raises(OfframpError, match=r"expected an image tensor of shape \(B, 3, 32, 32\)"):
        runner(torch.zeros(1, 3, 64, 64))


def test_the_registry_knows_it() -> None:
    assert ENGINES.get("onnxruntime") is OnnxRuntimeEngine
    assert OnnxRuntimeEngine.precisions == ("float32", "int8")
