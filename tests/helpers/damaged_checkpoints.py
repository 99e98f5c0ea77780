"""Checkpoint files with damage, as a fuzzer makes it: bytes flipped, cut and inserted, and values of other types."""

from __future__ import annotations

import copy
import io
import json
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from safetensors.torch import save

from selfpatch.checkpoints.export.safetensors import export_state
from selfpatch.checkpoints.load import load_encoder
from selfpatch.models.backbones.config import ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.released_forms import hugging_face, prefixed, random_backbone, trunk_state

SMALL = ViTConfig(embed_dim=8, depth=1, num_heads=2, patch_size=2, grid=2)
ODD_VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 2**31, 10**7, 10**30, 0.5, float("nan"), float("inf"), True, None, "", "vit", "../x", "\0"),
    *([], [0], [3.0, "a"], {}, {"a": 1}, [[[[]]]], "9" * 5000, {"family": "vit"}),
)
ODD_TENSORS: tuple[Any, ...] = (
    *(torch.zeros(()), torch.zeros(0), torch.zeros(1), torch.zeros(8), torch.zeros(8, 8), torch.zeros(1, 5, 8)),
    *(
        torch.zeros(8, 3, 2, 2),
        torch.zeros(8, 3, 0, 2),
        torch.zeros(2, 3, 4, 5, 6),
        torch.zeros(1).expand(10**6, 10**6),
    ),
    *(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.complex64)),
    *(torch.full((8,), float("nan")), torch.zeros(8).to_sparse(), torch.zeros(8, dtype=torch.float8_e4m3fn)),
)


def _torch_file(content: Any, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def contents() -> dict[str, Any]:
    """Contents of checkpoints in several formats, small enough to load in milliseconds."""
    vit = trunk_state(random_backbone(SMALL))
    swin = trunk_state(random_backbone(SwinConfig(embed_dim=4, depths=(1, 1), first_heads=1, window=2)))
    resnet = trunk_state(random_backbone(ResNetConfig(depths=(1, 1), width=2)))
    return {
        "dino": {"teacher": prefixed("backbone.", vit), "student": prefixed("module.backbone.", vit), "epoch": 3},
        "run": {
            "pretrainer": {**prefixed("teacher.backbone.trunk.", vit), **prefixed("student.backbone.trunk.", vit)},
            "shape": SMALL.to_dict(),
        },
        "plain": vit,
        "hugging face": hugging_face(vit),
        "swin": {"model": swin},
        "resnet": {"state_dict": prefixed("encoder_q.", resnet)},
    }


def _odd(rng: random.Random) -> Any:
    return rng.choice(ODD_TENSORS) if rng.random() < 0.6 else copy.deepcopy(rng.choice(ODD_VALUES))


def retyped(content: Any, rng: random.Random) -> Any:
    """Return a content in which a few entries are renamed, removed, or have values of another type."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for _ in range(rng.randint(1, 3)):
        inner = [value for value in changed.values() if isinstance(value, dict) and value]
        target = rng.choice(inner) if inner and rng.random() < 0.8 else changed
        if not target:
            continue
        key = rng.choice(list(target))
        action = rng.random()
        if action < 0.5:
            target[key] = _odd(rng)
        elif action < 0.65:
            del target[key]
        elif action < 0.8:
            target[rng.choice([0, ("a", 1), b"a", 2.5, None, "module." + str(key), "x." + str(key)])] = target[key]
        elif action < 0.9:
            target[rng.choice(["model", "teacher", "blocks.3.norm1.weight", "shape", "reg_token"])] = _odd(rng)
        else:
            target[key] = changed  # a content that holds itself
    return changed


def _safetensors(rng: random.Random) -> bytes:
    """A file of safetensors whose header is changed."""
    encoder = BranchEncoder(random_backbone(SMALL), None)
    state, metadata = export_state(encoder)
    whole = save(state, metadata)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    shape = json.loads(header["__metadata__"]["shape"])
    for _ in range(rng.randint(1, 3)):
        action = rng.random()
        if action < 0.5:
            shape[rng.choice([*shape, "wings"])] = rng.choice(ODD_VALUES)
        elif action < 0.6:
            del shape[rng.choice(list(shape) or ["none"])]
        else:
            entry = header[rng.choice([key for key in header if key != "__metadata__"])]
            entry[rng.choice(list(entry))] = rng.choice((*ODD_VALUES, "F64", "I64", "BF16", "F8_E5M2", [8, 3], [0, 4]))
    changed = shape if rng.random() < 0.9 else rng.choice(ODD_VALUES)
    header["__metadata__"]["shape"] = json.dumps(changed)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def _flipped(whole: bytes, rng: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(400, len(content)))
        if rng.random() < 0.7:
            content[place] = rng.randrange(256)
        elif rng.random() < 0.5:
            content[place:place] = rng.randbytes(rng.randint(1, 20))
        else:
            del content[place : place + rng.randint(1, 20)]
        content = content or bytearray(b"\0")
    return bytes(content if rng.random() < 0.8 else content[: rng.randrange(len(content))])


class Damage:
    """A source of damaged files by seed.

    A few differ from process to process: older files of torch.save hold addresses, and safetensors orders its metadata
    at random.
    """

    def __init__(self) -> None:
        self._contents = contents()
        self._whole = [
            _torch_file(value, zipped=zipped) for value in self._contents.values() for zipped in (True, False)
        ]
        state, metadata = export_state(BranchEncoder(random_backbone(SMALL), None))
        self._whole.append(save(state, metadata))
        self._kinds: tuple[Callable[[random.Random], bytes], ...] = (self._bytes, self._retyped, _safetensors)
        self._folder = {
            "config.json": {"model_type": "vit", "num_attention_heads": 2, "hidden_act": "gelu"},
            "preprocessor_config.json": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        }

    def _bytes(self, rng: random.Random) -> bytes:
        return _flipped(rng.choice(self._whole), rng)

    def _retyped(self, rng: random.Random) -> bytes:
        content = retyped(self._contents[rng.choice(list(self._contents))], rng)
        return _torch_file(content, zipped=rng.random() < 0.7)

    def write(self, seed: int, folder: Path) -> Path:
        """Write the file of a seed, of a name that may not be that of its format, or its folder of Hugging Face."""
        rng, kind = random.Random(seed), seed % (len(self._kinds) + 1)
        if kind == len(self._kinds):
            self._write_folder(folder / "hf", rng)
            return folder / "hf"
        path = folder / f"w{rng.choice(['.pth', '.safetensors', '.bin', ''])}"
        path.write_bytes(self._kinds[kind](rng))
        return path

    def _write_folder(self, folder: Path, rng: random.Random) -> None:
        """Write two shards, their index and two descriptions, one of which is changed."""
        folder.mkdir()
        state = {key: tensor.contiguous() for key, tensor in self._contents["hugging face"].items()}
        names, keys = ("a.safetensors", "b.safetensors"), sorted(state)
        for i, name in enumerate(names):
            (folder / name).write_bytes(save({key: state[key] for key in keys[i::2]}))
        index: dict[str, Any] = {"weight_map": {key: names[i % 2] for i, key in enumerate(keys)}}
        files = {"model.safetensors.index.json": index, **copy.deepcopy(self._folder)}
        chosen = rng.choice(list(files))
        target = files[chosen]["weight_map"] if chosen.startswith("model") and rng.random() < 0.8 else files[chosen]
        for _ in range(rng.randint(1, 3)):
            target[rng.choice([*target, "extra"])] = rng.choice((*ODD_VALUES, *names, "/etc/passwd", "a.safetensors/"))
        for name, content in files.items():
            text = json.dumps(content).encode()
            (folder / name).write_bytes(_flipped(text, rng) if name == chosen and rng.random() < 0.3 else text)


def refusal(path: Path) -> str | None:
    """Load a file; return the sentence that refuses it, or None. Any other error, or form of it, fails."""
    try:
        load_encoder(str(path))
    except ValueError as error:
        sentence = str(error)
        assert str(path) in sentence, sentence
        assert "\n" not in sentence, sentence
        assert len(sentence) < 800, sentence
        return sentence
    return None


def main(count: int) -> None:
    """Load the files of the first seeds, and print what came of them."""
    outcomes: Counter[str] = Counter()
    slowest, damage, before = 0.0, Damage(), _peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            path = damage.write(seed, Path(folder))
            started = process_time()
            try:
                outcomes["loaded" if refusal(path) is None else "refused"] += 1
            except Exception as error:
                outcomes["other errors"] += 1
                print(f"seed {seed}: {error!r}")
            slowest = max(slowest, process_time() - started)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    grown = (_peak_memory() - before) / 2**20
    print(f"{count} files: {dict(outcomes)}; the slowest took {slowest:.2f} s; memory grew by {grown:.0f} MiB")


def _peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(int(sys.argv[1]))
