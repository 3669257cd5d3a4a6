"""Files that are whole or absent: everything is written beside its place and then renamed."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offramp.errors import OfframpError

M = TypeVar("M", bound=BaseModel)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write ``data`` to a temporary neighbour, flush it to disk, rename it over ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; results are not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON, or raise `OfframpError` naming the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OfframpError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OfframpError(f"{path}: not valid JSON ({error})") from None


def read_model(kind: type[M], path: Path | str, what: str) -> M:
    """What a JSON file says, checked; raises `OfframpError` naming file and key, or ``what``."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or what
        raise OfframpError(f"{path}: {key}: {first['msg']}") from None


def write_tensors(
    path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; values are text metadata."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(ready, metadata=metadata))


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, or raise `OfframpError` naming the file."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


def tensors_metadata(path: Path | str) -> dict[str, str]:
    """Text metadata of a safetensors file."""
    with open_tensors(path) as file:
        return dict(file.metadata() or {})


def open_tensors(path: Path | str) -> Any:
    """Open a safetensors file lazily, or raise `OfframpError` naming the file."""
    if not Path(path).is_file():
        raise OfframpError(f"{path}: no such file")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: changed while opened
        raise OfframpError(
            f"{path}: not a complete safetensors file ({error}); copy or train it again"
        ) from None


def tensor_digest(tensors: dict[str, Tensor], *, extra: str = "", length: int = 16) -> str:
    """SHA-256 over names, shapes and bytes of tensors, as ``length`` hex characters."""
    digest = hashlib.sha256(extra.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:length]
