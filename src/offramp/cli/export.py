"""``offramp export``: an operating point as files for another runtime."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.terminal import AsJson, Run, emit, show, table, working

VERIFIED_ON = 32  # real images that every segment is compared with torch on


class Target(StrEnum):
    """Formats, by the engine that runs them."""

    onnx = "onnx"
    openvino = "openvino"


ENGINE = {Target.onnx: "onnxruntime", Target.openvino: "openvino"}


def export(
    run: Run,
    to: Annotated[Target, typer.Option(help="Format: ONNX, or OpenVINO's own.")] = Target.onnx,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "fp32",
    point: Annotated[
        str | None,
        typer.Option(help="Operating point; the newest of that engine when omitted."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; RUN/bundles/POINT when omitted.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older bundle of that name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write an operating point as a folder that another runtime can use.

    One file per segment and a manifest; with ONNX also single.onnx, which exits early in any ONNX
    runtime. Every segment is compared with torch first. The point must have been calibrated on the
    engine that will run it:

    [bold]offramp calibrate runs/demo --max-drop 0.5 --engine onnxruntime[/]

    Example: [bold]offramp export runs/demo --to onnx[/]
    """
    from offramp.reduced_run import reduced_run
    from offramp.runs import RunFolder
    from offramp.runtime.bundle import export_bundle

    folder = RunFolder(run).check()
    name, chosen = folder.point(point, engine=ENGINE[to], precision=precision)
    target = out or folder.path / "bundles" / name
    options = folder.engine_options(chosen.engine, chosen.precision)
    with working("exporting and comparing with torch", as_json):
        manifest = export_bundle(
            reduced_run(folder, chosen.reducer).model,
            chosen,
            target,
            images=folder.images("calibration", VERIFIED_ON),
            calibration=options.calibration,
            overwrite=overwrite,
        )
    if as_json:
        emit({"bundle": str(target), "manifest": manifest.model_dump(mode="json")})
        return
    rows = [
        (
            segment.file,
            f"{segment.blocks[0]}…{segment.blocks[1]}",
            segment.exit_name,
            f"{(target / segment.file).stat().st_size / 2**20:.1f}",
            f"{checked['difference']:.1e}",
        )
        for segment, checked in zip(manifest.segments, manifest.verified["segments"], strict=True)
    ]
    columns = ["file", "blocks", "exit<", "MiB", "largest difference"]
    show(table(f"{name} for {chosen.engine}, {chosen.precision}", columns, rows))
    show(
        f"Written: {target}" + (f", with {manifest.single} for batch 1" if manifest.single else "")
    )
