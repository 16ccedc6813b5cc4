"""Finds the files of a folder that hold the weights of its model, and reads which tensors are in them.

`file_checks` and `weights` call it at every load. It chooses the files that transformers would choose, and refuses a
folder where the choice is a guess: a whole file beside the index of other files, shards that lack tensors of their
index, an adapter. It reads headers only, never a tensor, and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kernel.drivers.transformers.file_kinds import head_of, settings

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WHOLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG, ADAPTER = "config.json", "adapter_config.json"
EXPLICIT = "transformers_weights"  # the field of a configuration that names the file or the index to load
MERGE = "merge it with its base model (`merge_and_unload` of peft), save the result in another folder, and name that"
OTHER_WEIGHTS = ("*.gguf", "*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.pth", "*.pt", "*.onnx")
HEAD, PREFIX = "lm_head.weight", "model."  # names in models whose base model is called "model"
# Numbers that a model computes, and that old versions of transformers saved with the weights.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.causal_mask|\.position_ids)$")
MAX_NAMES = 4  # of the names in one error, besides their count


class UnfitFiles(Exception):
    """The files of a model are not those of a model that llmosd can run. The message says what is wrong with which.

    `weights.load` makes it a `ModelLoadFailed` with the model's name.
    """


class Tensor(NamedTuple):
    """A tensor as the header of a file describes it. `type` is a name of safetensors, such as "F32" or "I8"."""

    shape: list[int]
    type: str


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of the model in `folder`, in the order in which transformers reads them.

    Raises `UnfitFiles` if there are none, if a file is missing, or if the folder holds two models; `ModelLoadFailed`
    for the remains of a failed download.
    """
    files = _chosen(folder)
    for file in files:
        head_of(file)
    return files


def has_headers(files: list[Path]) -> bool:
    """Whether `files` are safetensors, whose headers describe the tensors."""
    return bool(files) and all(file.suffix == ".safetensors" for file in files)


def tensors(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of `files`, all of safetensors, by name.

    Raises `UnfitFiles` for a damaged file, a tensor that is in two files, or shards that lack tensors of their index.
    """
    found: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in found:
                raise UnfitFiles(
                    f"{file.parent} holds the tensor {name} twice, in {places[name]} and in {file.name}; restore the "
                    f"files of one model"
                )
            found[name], places[name] = tensor, file.name
    index = files[0].parent / INDEX
    if files[0].name != WHOLE and index.is_file() and {file.name for file in files} == set(_shard_names(index)):
        _check_index(index, found)
    return found


def in_full(tensor: str) -> str:
    """The name of a tensor in the whole model. A base model is saved without the prefix of its tensors' names."""
    return tensor if tensor == HEAD or tensor.startswith(PREFIX) else PREFIX + tensor


def some(names: Iterable[str]) -> str:
    """The first of `names`, and how many there are besides."""
    ordered = list(names)
    shown = ", ".join(ordered[:MAX_NAMES])
    return shown if len(ordered) <= MAX_NAMES else f"{shown}, and {len(ordered) - MAX_NAMES} more"


def _chosen(folder: Path) -> list[Path]:
    if (folder / ADAPTER).is_file():
        raise UnfitFiles(
            f"{folder} holds an adapter ({ADAPTER}), which llmosd does not apply; {MERGE}. If the weights in this "
            f"folder are merged already, remove {ADAPTER}"
        )
    explicit = settings(folder / CONFIG).get(EXPLICIT)
    if explicit is not None:
        return _explicit_files(folder, str(explicit))
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        other = sorted(name for name in _shard_names(index) if name != WHOLE) if index.is_file() else []
        if any((folder / name).is_file() for name in other):
            raise UnfitFiles(
                f"{folder} holds two sets of weights: {WHOLE}, and the files in {INDEX} ({some(other)}); remove the "
                f"set that is not the model"
            )
        return [whole]
    if index.is_file():
        return _indexed(index)
    if (folder / TORCH_WHOLE).is_file():
        return [folder / TORCH_WHOLE]
    if (folder / TORCH_INDEX).is_file():
        return _indexed(folder / TORCH_INDEX)
    raise UnfitFiles(f"{folder} holds no weights: neither {WHOLE} nor {INDEX}{_instead(folder)}")


def _instead(folder: Path) -> str:
    """The advice for a folder without weights under their usual names, by the other files in it."""
    found = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    ggufs = [name for name in found if name.endswith(".gguf")]
    if ggufs:
        return f"; to use a GGUF file in it, name the file: {folder / ggufs[0]}"
    if any(name.endswith(".safetensors") for name in found):
        return f"; it does hold {some(found)}: rename the right file, or restore the index"
    others = f" ({some(found)} is of another kind)" if found else ""
    return f"{others}; copy {WHOLE} of the model into the folder"


def _explicit_files(folder: Path, name: str) -> list[Path]:
    path = folder / name
    if not name.endswith((".safetensors", ".safetensors.index.json")) or Path(name).name != name:
        raise UnfitFiles(
            f"{EXPLICIT} in {folder / CONFIG} names {name!r}, which is no .safetensors file of this folder and "
            f"no index of such files; correct or remove the field"
        )
    if not path.is_file():
        raise UnfitFiles(f"{folder} lacks the file {name}, which its {CONFIG} names ({EXPLICIT}); restore it")
    return _indexed(path) if name.endswith(".json") else [path]


def _indexed(index: Path) -> list[Path]:
    names = _shard_names(index)
    files = [index.parent / name for name in names]
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UnfitFiles(f"{index} names files outside its folder: {some(outside)}; restore the index")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UnfitFiles(
            f"{index.parent} lacks {len(missing)} of the {len(files)} files in {index.name}: {some(missing)}; download "
            f"or copy the rest"
        )
    return files


def _shard_names(index: Path) -> list[str]:
    """The files that `index` names, in the order in which transformers reads them."""
    places = settings(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UnfitFiles(f"{index} names no files: it has no `weight_map`; restore the index")
    return sorted(set(places.values()))


def _check_index(index: Path, found: Mapping[str, Tensor]) -> None:
    """Refuse shards that lack tensors of `index`: then one of them is of another model.

    transformers reads all tensors of the shards, wherever `index` has them. It does without some: a tied head, and what
    the model computes.
    """
    places: dict[str, str] = settings(index)["weight_map"]
    lost = [name for name in places if name not in found and not name.endswith(HEAD) and not COMPUTED.search(name)]
    if lost:
        raise UnfitFiles(
            f"{some(sorted({places[name] for name in lost}))} in {index.parent} lacks {len(lost)} tensors that "
            f"{index.name} says it holds: {some(sorted(lost))}; it may be a file of another model: download or copy it "
            f"again"
        )


def _header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file: 8 bytes of length, the header, the tensors."""
    size, head = file.stat().st_size, head_of(file)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or 8 + length > size:
        raise UnfitFiles(f"{file} is truncated or damaged, or is no safetensors file; download or copy it again")
    with file.open("rb") as opened:
        opened.seek(8)
        header = opened.read(length)
    try:
        parts = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
        parts.pop("__metadata__", None)
        found = {name: Tensor(list(part["shape"]), str(part["dtype"])) for name, part in parts.items()}
        end = 8 + length + max((int(part["data_offsets"][1]) for part in parts.values()), default=0)
    except (msgspec.DecodeError, ValueError, LookupError, TypeError) as error:
        raise UnfitFiles(f"the header of {file} is damaged ({error}); download or copy it again") from error
    if end > size:
        raise UnfitFiles(f"{file} is truncated: its last {end - size} bytes are missing; download or copy it again")
    return found
