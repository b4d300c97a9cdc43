"""A bundle: the directory that is flashed to a device. `Manifest` is what it says of itself.

Everything is verified before it is used: the manifest against its signature, where keys are trusted, and against
``manifest.sha256``, each file against the size and SHA-256 in the manifest. docs/bundle.md gives the format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError, IntegrityError
from device_runtime.files import pieces_of
from device_runtime.tensors import TensorSpec, Weights, canonical_json, model_id, sha256
from device_runtime.weights import load_weights

if TYPE_CHECKING:  # cryptography is loaded only where keys are trusted
    from device_runtime.signature import TrustedKeys

FORMAT_VERSION = 4
RUNTIME = "tflite-builtins"  # the class of runtime that this package is: a TFLite interpreter without delegates
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
MANIFEST_SIGNATURE = "manifest.sig"
TRAIN_ARTIFACT = "train.tflite"
INFER_ARTIFACT = "infer.tflite"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"
FILES = (TRAIN_ARTIFACT, INFER_ARTIFACT, WEIGHTS, GOLDEN)
SUFFIX = ".bundle"


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file of a bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature of the training artifact."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input with this name; KeyError where there is none."""
        return {spec.name: spec for spec in self.inputs}[name]


@dataclass(frozen=True)
class StoredVariable:
    """A variable of the training artifact: a run of a weight's values.

    Attributes:
        tensor: the weight's place in the manifest's order.
        start, size: of the run, in elements of the flat weight.
        transposed: whether the artifact stores the weight transposed; it is a matrix then, and the run is all of it.
    """

    tensor: int
    start: int
    size: int
    transposed: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes of the tensors that a training step keeps at once: `fixed`, and `per_example` for each of its batch."""

    fixed: int = 0
    per_example: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: the model's name in the registry that it came from.
        version: monotonic; a newer bundle has a larger one.
        files: size and hash of every file but the manifest.
        signatures: of ``train.tflite``: train, evaluate, infer, write_variable, read_variable, …
        tensors: the trainable weights, in the order that every weight file and update has.
        variables: what each of the artifact's variables holds; their places are their numbers.
        loss: the name of the training loss.
        metric: the name of the evaluation metric.
        optimizer: the client's, with its settings; its state lives in the artifact.
        inference: what ``infer.tflite`` computes in: float32 or int8.
        runtime: the class of runtime that it needs.
        created: when and with what versions it was made.
        optimizer_state: shapes of the artifact's variables that hold it; their numbers follow on those of `variables`.
        footprint: of a training step, beside the weights.
    """

    name: str
    version: int
    files: Mapping[str, FileEntry]
    signatures: Mapping[str, Signature]
    tensors: tuple[TensorSpec, ...]
    variables: tuple[StoredVariable, ...]
    loss: str
    metric: str
    optimizer: Mapping[str, Any]
    inference: str
    runtime: str
    created: Mapping[str, str]
    optimizer_state: tuple[tuple[int, ...], ...] = ()
    footprint: Footprint = Footprint()

    @cached_property
    def model_id(self) -> str:
        """Identity of the weights' layout; see `device_runtime.tensors.model_id`."""
        return model_id(self.name, self.tensors)

    @property
    def parameters(self) -> int:
        return sum(spec.size for spec in self.tensors)

    @property
    def examples(self) -> tuple[TensorSpec, TensorSpec]:
        """What a local example is: the inputs ``x`` and ``y`` of the train signature, with a free first dimension.

        Raises:
            IntegrityError: the manifest does not say.
        """
        try:
            return self.signatures["train"].input("x"), self.signatures["train"].input("y")
        except KeyError as error:
            raise IntegrityError(f"{MANIFEST}.signatures: {error} is missing; export the bundle again") from None

    def dump(self) -> bytes:
        """Canonical JSON bytes: what is hashed, and what identifies the bundle."""
        return canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "name": self.name,
                "version": self.version,
                "model_id": self.model_id,
                "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
                "signatures": {
                    name: {
                        "inputs": [spec.to_json() for spec in signature.inputs],
                        "outputs": [spec.to_json() for spec in signature.outputs],
                    }
                    for name, signature in self.signatures.items()
                },
                "tensors": [spec.to_json() for spec in self.tensors],
                "variables": [asdict(variable) for variable in self.variables],
                "loss": self.loss,
                "metric": self.metric,
                "optimizer": dict(self.optimizer),
                "optimizer_state": [list(shape) for shape in self.optimizer_state],
                "inference": self.inference,
                "runtime": self.runtime,
                "created": dict(self.created),
                "footprint": asdict(self.footprint),
            }
        )

    @classmethod
    def load(cls, data: bytes, where: str = MANIFEST) -> Manifest:
        """Read what `dump` wrote.

        Raises:
            IntegrityError: naming the field that is missing or of another form.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise IntegrityError(f"{where}: not JSON") from None
        reader = _Reader(value, where)
        if reader.integer("format_version") != FORMAT_VERSION:
            raise IntegrityError(f"{where}.format_version: this runtime reads version {FORMAT_VERSION}")
        manifest = cls(
            name=reader.text("name"),
            version=reader.integer("version"),
            files={
                name: FileEntry(entry.integer("size"), entry.text("sha256"))
                for name, entry in reader.objects("files").items()
            },
            signatures={
                name: Signature(entry.tensors("inputs"), entry.tensors("outputs"))
                for name, entry in reader.objects("signatures").items()
            },
            tensors=reader.tensors("tensors"),
            variables=tuple(
                StoredVariable(
                    one.integer("tensor"), one.integer("start"), one.integer("size"), one.boolean("transposed")
                )
                for one in reader.list_of_objects("variables")
            ),
            loss=reader.text("loss"),
            metric=reader.text("metric"),
            optimizer=reader.mapping("optimizer"),
            inference=reader.text("inference"),
            runtime=reader.text("runtime"),
            created={name: str(text) for name, text in reader.mapping("created").items()},
            optimizer_state=reader.shapes("optimizer_state"),
            footprint=Footprint(*map(reader.object("footprint").integer, ("fixed", "per_example"))),
        )
        missing = sorted(set(FILES) - set(manifest.files))
        if missing:
            raise IntegrityError(f"{where}.files: {', '.join(missing)} missing")
        for name in manifest.files:
            if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
                raise IntegrityError(f"{where}.files: {name!r} is not a plain file name")
        if any(None in spec.shape for spec in manifest.tensors):
            raise IntegrityError(f"{where}.tensors: a weight's shape has a free dimension")
        if not _covered(manifest):
            raise IntegrityError(f"{where}.variables: they do not hold every value of every weight once")
        try:
            fits = reader.text("model_id") == manifest.model_id
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            fits = False
        if not fits:
            raise IntegrityError(f"{where}.model_id: does not fit the name and tensors")
        return manifest


class Bundle:
    """A verified bundle on disk."""

    def __init__(self, path: Path, manifest: Manifest, identity: str, signer: str | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.identity = identity
        """SHA-256 of the manifest's bytes: since the manifest holds all hashes, it identifies every byte."""
        self.signer = signer
        """Id of the trusted key that signed it; None where the signature was not checked."""

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def files(self) -> list[str]:
        """Names of all its files, in order: the manifest's own, its signature where there is one, and what it names."""
        signature = [MANIFEST_SIGNATURE] if self.file(MANIFEST_SIGNATURE).is_file() else []
        return sorted({*self.manifest.files, MANIFEST, MANIFEST_HASH, *signature})

    def initial_weights(self) -> Weights:
        """The weights that the bundle was exported with, float32, in the manifest's order."""
        return load_weights(self.file(WEIGHTS).read_bytes(), self.manifest.tensors, str(self.file(WEIGHTS)))

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of ``golden.npz``; see `device_runtime.selftest`."""
        path = self.file(GOLDEN)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception:  # numpy, zipfile and zlib have a dozen kinds between them for a damaged file
            raise IntegrityError(f"{path}: not a .npz file of golden values; export the bundle again") from None


def open_bundle(path: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Verify the bundle at `path`, or the only one in the folder `path`, and return it.

    Args:
        path: of the bundle or the folder.
        trusted: the bundle must be signed with one of these keys; None does not look at its signature.

    Raises:
        InputError: there is no bundle, or more than one.
        IntegrityError: a file is missing, its bytes are not those that the manifest names, or nobody who is
            trusted has signed the manifest.
    """
    path = _find(path)
    data = _read(path / MANIFEST)
    signer = None
    if trusted is not None:  # before anything of the bundle is parsed
        signature = path / MANIFEST_SIGNATURE
        signer = trusted.verify(data, _read(signature) if os.path.lexists(signature) else None, str(signature))
    if _read(path / MANIFEST_HASH) != manifest_hash_file(data):
        raise IntegrityError(f"{path / MANIFEST}: does not match {MANIFEST_HASH}: changed or damaged; copy it again")
    manifest = Manifest.load(data, str(path / MANIFEST))
    for name, entry in manifest.files.items():
        _verify(path / name, entry)
    return Bundle(path, manifest, sha256(data), signer)


def _verify(path: Path, entry: FileEntry) -> None:
    """Raise `IntegrityError` unless the file has the size and SHA-256 of `entry`; no more than a piece is in memory."""
    hashed, size = hashlib.sha256(), 0
    try:
        for piece in pieces_of(path):
            hashed.update(piece)
            size += len(piece)
    except OSError as error:
        raise _unreadable(path, error) from None
    if size != entry.size:
        raise IntegrityError(f"{path}: {size} bytes, the manifest says {entry.size}; copy it again")
    if hashed.hexdigest() != entry.sha256:
        raise IntegrityError(f"{path}: its SHA-256 is not the manifest's: changed or damaged; copy it again")


def manifest_hash_file(manifest: bytes) -> bytes:
    """The content of ``manifest.sha256``, in the form that ``sha256sum --check`` reads."""
    return f"{sha256(manifest)}  {MANIFEST}\n".encode()


def _find(path: Path) -> Path:
    try:
        if path.is_symlink():  # followed once: an installation's link may lead elsewhere a moment later
            path = Path(os.path.realpath(path))
        if (path / MANIFEST).is_file():
            return path
        if not path.is_dir():
            raise InputError(f"{path}: no such bundle; make one with 'pocketfed export'")
        found = sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
    except OSError as error:
        raise InputError(f"{path}: can't look for a bundle there: {error.strerror}") from None
    if len(found) != 1:
        names = ", ".join(child.name for child in found) or "none"
        raise InputError(f"{path}: expected a bundle, or a folder that holds exactly one; found {names}")
    return found[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> IntegrityError:
    return IntegrityError(f"{path}: {error.strerror}; the bundle is incomplete")


def _covered(manifest: Manifest) -> bool:
    """Whether the variables are the weights, run after run."""
    runs = ((number, 0, spec) for number, spec in enumerate(manifest.tensors))
    number, start, spec = next(runs, (0, 0, None))
    for variable in manifest.variables:
        if spec is None or (variable.tensor, variable.start) != (number, start) or variable.size < 1:
            return False
        if variable.transposed and (len(spec.shape) != 2 or variable.size != spec.size):
            return False
        start += variable.size
        if start == spec.size:
            number, start, spec = next(runs, (0, 0, None))
    return spec is None


class _Reader:
    """Fields of a JSON object, each checked for its type, with errors that name the field."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise IntegrityError(f"{where}: expected a JSON object")
        self._value = value
        self._where = where

    def _field(self, name: str, kind: type, expected: str) -> Any:
        value = self._value.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise IntegrityError(f"{self._where}.{name}: expected {expected}")
        return value

    def text(self, name: str) -> str:
        return str(self._field(name, str, "a string"))

    def integer(self, name: str) -> int:
        value = int(self._field(name, int, "a whole number"))
        if value < 0:
            raise IntegrityError(f"{self._where}.{name}: expected a whole number of at least 0")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._field(name, dict, "an object"))

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        values = self._field(name, list, "a list")
        for index, shape in enumerate(values):
            if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
                raise IntegrityError(f"{self._where}.{name}[{index}]: expected a list of whole numbers above 0")
        return tuple(map(tuple, values))

    def boolean(self, name: str) -> bool:
        value = self._value.get(name)
        if not isinstance(value, bool):
            raise IntegrityError(f"{self._where}.{name}: expected true or false")
        return value

    def list_of_objects(self, name: str) -> list[_Reader]:
        values = self._field(name, list, "a list")
        return [_Reader(value, f"{self._where}.{name}[{index}]") for index, value in enumerate(values)]

    def object(self, name: str) -> _Reader:
        return _Reader(self.mapping(name), f"{self._where}.{name}")

    def objects(self, name: str) -> dict[str, _Reader]:
        return {key: _Reader(value, f"{self._where}.{name}.{key}") for key, value in self.mapping(name).items()}

    def tensors(self, name: str) -> tuple[TensorSpec, ...]:
        values = self._field(name, list, "a list")
        return tuple(
            TensorSpec.from_json(value, f"{self._where}.{name}[{index}]") for index, value in enumerate(values)
        )
