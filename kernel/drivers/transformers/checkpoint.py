"""Finds the files of a folder that hold the weights of its model, and reads which tensors are in them.

`weights` calls it at every load. It chooses the files that transformers would choose, and refuses a folder where the
choice is a guess: a whole file beside the index of other files, an index that its shards contradict, an adapter. It
reads headers only, never a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WHOLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
EXPLICIT = "transformers_weights"  # the field of a configuration that names the file or the index to load
LFS = b"version https://git-lfs"
HEAD, PREFIX = "lm_head.weight", "model."  # names in models whose base model is called "model"
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

    Raises `UnfitFiles` if there are none, if a file is missing, or if the folder holds two models.
    """
    files = _chosen(folder)
    for file in files:
        refuse_pointer(file)
    return files


def has_headers(files: list[Path]) -> bool:
    """Whether `files` are safetensors, whose headers describe the tensors."""
    return bool(files) and all(file.suffix == ".safetensors" for file in files)


def tensors(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of `files`, all of safetensors, by name.

    Raises `UnfitFiles` for a damaged file, a tensor that is in two files, or files that contradict their index.
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
        _check_index(index, places)
    return found


def refuse_pointer(file: Path) -> None:
    """Raise `UnfitFiles` if `file` holds, in place of weights, the address of weights that git-lfs writes."""
    with file.open("rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise UnfitFiles(f"{file} is a pointer of git-lfs, and not the weights; fetch them with `git lfs pull`")


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
            f"{folder} holds an adapter ({ADAPTER}), which llmosd does not apply; merge it into its base model "
            f"(`merge_and_unload` of peft), save the result in a folder of its own, and name that one"
        )
    explicit = _json(folder / "config.json").get(EXPLICIT)
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
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"; it does hold {some(others)}: rename the right file, or restore the index" if others else ""
    raise UnfitFiles(f"{folder} holds no weights: neither {WHOLE} nor {INDEX}{found}")


def _explicit_files(folder: Path, name: str) -> list[Path]:
    path = folder / name
    if not name.endswith((".safetensors", ".safetensors.index.json")) or not path.resolve().is_relative_to(
        folder.resolve()
    ):
        raise UnfitFiles(
            f"{EXPLICIT} in {folder / 'config.json'} names {name!r}, which is no .safetensors file of this folder and "
            f"no index of such files; correct or remove the field"
        )
    if name.endswith(".json"):
        return _indexed(path)
    if not path.is_file():
        raise UnfitFiles(f"{folder} lacks the file {name}, which its config.json names ({EXPLICIT}); restore it")
    return [path]


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
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UnfitFiles(f"{index} names no files: it has no `weight_map`; restore the index")
    return sorted(set(places.values()))


def _check_index(index: Path, places: dict[str, str]) -> None:
    """Refuse shards that are not those of which `index` was made. `places`: the file of each tensor."""
    said: dict[str, str] = _json(index)["weight_map"]
    wrong = sorted(name for name in said if places.get(name) != said[name])
    if wrong:
        files = sorted({said[name] for name in wrong})
        raise UnfitFiles(
            f"{some(files)} in {index.parent} lacks {len(wrong)} tensors that {index.name} says it holds: "
            f"{some(wrong)}; it may be a file of another model: download or copy it again"
        )
    extra = sorted(places.keys() - said.keys())
    if extra:
        raise UnfitFiles(
            f"{some(sorted({places[name] for name in extra}))} in {index.parent} holds {len(extra)} tensors that are "
            f"not in {index.name}: {some(extra)}; it may be a file of another model: download or copy it again"
        )


def _header(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 # it is no dict
            return {name: Tensor(list(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UnfitFiles(
            f"{file} is truncated or damaged, or is no safetensors file ({error}); download or copy it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UnfitFiles(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnfitFiles(f"{path} holds no JSON object; restore the file")
    return content
