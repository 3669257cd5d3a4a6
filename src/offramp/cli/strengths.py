"""The strengths of a reducer that ``offramp calibrate`` chooses from, as they are asked for."""

from typing import TYPE_CHECKING, NamedTuple

import yaml
from pydantic import ValidationError

from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.reducers import ReducerSpec
    from offramp.runs import RunFolder

AUTO = "auto"


class Strengths(NamedTuple):
    """What to choose from, and what to say about how that came."""

    specs: "list[ReducerSpec]"
    notes: list[str]


def strengths(
    run: "RunFolder",
    *,
    reducer: str | None,
    keep: str | None,
    r: str | None,
    engine: str,
    precision: str | None,
    batch_size: int,
) -> Strengths | None:
    """Read ``--reducer``, ``--keep`` and ``--r``; None where none of them was given."""
    from offramp.reducers import REDUCERS

    given = {"keep": keep, "r": r}
    asked = {option: text for option, text in given.items() if text is not None}
    if reducer is None and not asked:
        return None
    if len(asked) == 2:
        raise OfframpError("--keep and --r are strengths of different reducers: give one of them")
    spec = run.model.config.reducer if reducer is None else _spec(reducer)
    if spec is None:
        known = ", ".join(REDUCERS.names())
        raise OfframpError(f"{run.path} has no reducer: name one with --reducer ({known})")
    REDUCERS.get(spec.name)
    if not asked:
        return Strengths([spec], [])
    [(option, text)] = asked.items()
    if text != AUTO:
        return Strengths([spec.at(**{option: value}) for value in _values(option, text)], [])
    from offramp.joint_calibration import worthwhile

    found, reason = worthwhile(
        run, spec, option, engine=engine, precision=precision, batch_size=batch_size
    )
    return Strengths(found, [reason])


def _spec(text: str) -> "ReducerSpec":
    from offramp.reducers import ReducerSpec

    try:
        return ReducerSpec.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError):
        raise OfframpError(
            f"--reducer {text!r}: give a name, or name and options: '{{name: tome, r: 8}}'"
        ) from None


def _values(option: str, text: str) -> list[float]:
    kind = int if option == "r" else float
    example = "0,4,8" if option == "r" else "1,0.7,0.5"
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OfframpError(
            f"--{option} {text!r}: use numbers with commas, such as {example}, or {AUTO}"
        ) from None
