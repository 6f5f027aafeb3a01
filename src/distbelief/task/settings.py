"""The settings of a process that the user's code depends on: replicas have those of the process that calls train."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from distbelief.errors import UsageError

_FLAGS = (
    "cudnn.enabled cudnn.benchmark cudnn.deterministic cudnn.allow_tf32 cuda.matmul.allow_tf32 "
    "cuda.matmul.allow_fp16_reduced_precision_reduction cuda.matmul.allow_bf16_reduced_precision_reduction "
    "mkldnn.enabled mkldnn.deterministic"
).split()
"""Below torch.backends."""


def check_settings() -> None:
    """Raise `UsageError` for settings of this process under which nothing can be trained."""
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise UsageError(
            "torch is not to compute gradients here: call train outside of torch.no_grad() and torch.inference_mode(), "
            "and after torch.set_grad_enabled(True)"
        )
    if (device := torch.get_default_device()).type != "cpu":
        raise UsageError(
            f"torch's default device is {device}, and models are built on the CPU, from where replicas place them: "
            'call torch.set_default_device("cpu") before train, and say where to compute with engine=Local(device=…)'
        )


@dataclass(frozen=True)
class Settings:
    """What is in force in a process; plain values, which can be sent to another one."""

    folder: str | None
    """The working directory; None if it is gone."""
    environment: dict[str, str]
    recursion_limit: int
    numpy_errors: dict[str, Any]
    default_dtype: torch.dtype
    matmul_precision: str
    deterministic: tuple[bool, bool]
    """Whether deterministic algorithms are asked for, and whether it is only warned of others."""
    anomaly: tuple[bool, bool]
    """Whether anomalies of autograd are looked for, and whether NaN is one."""
    check_sparse: bool
    sharing: str
    """How data loaders share memory."""
    flags: dict[str, bool]

    @classmethod
    def of_this_process(cls) -> Self:
        """Those that are in force here."""
        folder = None
        with suppress(OSError):
            folder = str(Path.cwd())
        return cls(
            folder=folder,
            environment=dict(os.environ),
            recursion_limit=sys.getrecursionlimit(),
            # A function that is called for errors stays where it is.
            numpy_errors={name: how for name, how in np.geterr().items() if how not in ("call", "log")},
            default_dtype=torch.get_default_dtype(),
            matmul_precision=torch.get_float32_matmul_precision(),
            deterministic=_deterministic(),
            anomaly=(torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            check_sparse=torch.sparse.check_sparse_tensor_invariants.is_enabled(),
            sharing=torch.multiprocessing.get_sharing_strategy(),
            flags=_flags(),
        )

    def apply(self, *, own: Sequence[str] = ()) -> None:
        """Put them in force here; variables of the environment called `own` stay as they are."""
        for name in {*os.environ, *self.environment} - set(own):
            if name in self.environment:
                os.environ[name] = self.environment[name]
            else:
                del os.environ[name]
        if self.folder is not None:
            with suppress(OSError):
                os.chdir(self.folder)
        sys.setrecursionlimit(self.recursion_limit)
        np.seterr(**self.numpy_errors)
        torch.set_default_dtype(self.default_dtype)
        torch.set_float32_matmul_precision(self.matmul_precision)
        if self.deterministic != _deterministic():
            # It imports the whole compiler, which takes longer than torch itself.
            torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])
        torch.autograd.set_detect_anomaly(*self.anomaly)
        (torch.sparse.check_sparse_tensor_invariants.enable if self.check_sparse else _nothing)()
        torch.multiprocessing.set_sharing_strategy(self.sharing)
        here = _flags()
        for name, value in self.flags.items():
            if here.get(name) != value:
                owner, _, leaf = name.rpartition(".")
                setattr(_backend(owner), leaf, value)


def _nothing() -> None:
    """The sparse tensors of a fresh process are not checked."""


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _backend(path: str) -> Any:
    return reduce(getattr, path.split("."), torch.backends)


def _flags() -> dict[str, bool]:
    found = {}
    for name in _FLAGS:
        # Some versions of torch have not all of them, or cannot tell one that was set in another way.
        with suppress(AttributeError, RuntimeError):
            value = _backend(name)
            if isinstance(value, bool):
                found[name] = value
    return found
