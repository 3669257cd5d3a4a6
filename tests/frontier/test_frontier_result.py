"""Who is beaten, who is not, and what the verdict says: arithmetic on given times."""

from typing import Any

import pytest

from offramp.frontier import Entry, Frontier

TASK = "ImageNet-1k"


def entry(name: str, ms: float | list[float], accuracy: float | None, **fields: Any) -> Entry:
    return Entry(
        **{
            "name": name,
            "kind": "static",
            "engine": "torch",
            "precision": "float32",
            "image_size": (224, 224),
            "parameters": 1,
            "macs": 1e9,
            "accuracy": accuracy,
            "task": None if accuracy is None else TASK,
            "source": "made up",
            "rounds_ms": ms if isinstance(ms, list) else [ms],
        }
        | fields
    )


def frontier(*entries: Entry) -> Frontier:
    return Frontier(batch_size=1, images=8, rounds=1, environment={}, entries=list(entries))


def dynamic(ms: float | list[float], accuracy: float, **fields: Any) -> Entry:
    return entry("point", ms, accuracy, kind="dynamic", **fields)


def test_median_quartiles_and_paired_ratio() -> None:
    slow = entry("slow", [2.0, 30.0, 4.0], 70)
    fast = entry("fast", [1.0, 10.0, 4.0], 70)
    assert slow.ms == 4
    assert slow.quartiles == (3, 17)
    assert slow.time_over(fast) == 2  # ratios 2, 3, 1: not the ratio of medians
    assert entry("once", 5.0, 70).quartiles == (5, 5)


def test_best_leaves_out_whoever_is_beaten_in_both() -> None:
    found = frontier(
        entry("accurate", 9, 80),
        entry("fast", 1, 70),
        entry("beaten", 5, 69.9),
        entry("between", 4, 75),
        entry("no slower, less accurate", 4, 74),
        entry("unknown", 2, None),
        entry("of another task", 2, 99, task="CIFAR-100"),
        entry("elsewhere", 0.5, 99, engine="openvino"),
        dynamic(0.1, 99),
    )
    assert [e.name for e in found.best("torch", TASK)] == ["fast", "between", "accurate"]
    assert found.engines == ["torch", "openvino"]
    assert [e.name for e in found.on("openvino")] == ["elsewhere"]
    assert found.find("elsewhere", "openvino").ms == 0.5


@pytest.mark.parametrize(
    ("ms", "accuracy", "rivals"),
    [
        (4.0, 75.0, ["between"]),  # equal in both is enough to make it superfluous
        (3.9, 75.0, []),
        (4.0, 75.1, []),
        (9.5, 74.0, ["between", "accurate"]),
        (9.5, 60.0, ["fast", "between", "accurate"]),
    ],
)
def test_rivals_are_as_accurate_and_as_fast(ms: float, accuracy: float, rivals: list[str]) -> None:
    static = (entry("fast", 1, 70), entry("accurate", 9, 80), entry("between", 4, 75))
    (verdict,) = frontier(*static, dynamic(ms, accuracy)).verdicts()
    assert verdict.rivals == rivals
    assert verdict.compared == 3
    if rivals:
        assert f"static {rivals[0]} already does this" in verdict.sentence
    else:
        assert "already" not in verdict.sentence


def test_verdict_in_words() -> None:
    small, large = entry("small", 2, 70), entry("large", 8, 80)

    def said(*entries: Entry) -> str:
        return frontier(*entries).verdicts()[0].sentence

    assert said(small, large, dynamic(4, 79)) == (
        "on torch: no static model here is as accurate and as fast; the fastest one as accurate "
        "is large (+1.00 points, 2.00× the time)"
    )
    assert said(small, large, dynamic(4, 69)) == (
        "on torch: static small already does this (+1.00 points, 0.50× the time)"
    )
    assert said(small, large, dynamic(8, 69)).endswith("; so does large")
    assert said(small, large, dynamic(4, 82)) == (
        "on torch: no static model here is as accurate; the most accurate is large "
        "(−2.00 points, 2.00× the time)"
    )
    nothing = said(small, entry("unknown", 1, None), dynamic(4, 82, task="digits, test split"))
    assert "no static model here has a known accuracy on digits, test split" in nothing


def test_engines_are_judged_apart() -> None:
    found = frontier(
        entry("small", 2, 70),
        dynamic(4, 69),
        entry("small", 2, 70, engine="openvino"),
        dynamic(1, 69, engine="openvino"),
    )
    assert [verdict.rivals for verdict in found.verdicts()] == [["small"], []]


def test_report_can_be_read_again() -> None:
    found = frontier(entry("small", [2.0, 3.0, 7.0], 70), dynamic([4.0, 4.0, 4.0], 69))
    report = found.report()
    assert [e["ms"] for e in report["entries"]] == [3, 4]
    assert report["verdicts"][0]["rivals"] == ["small"]
    assert Frontier.model_validate(report) == found
