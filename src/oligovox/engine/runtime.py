"""Runtime: where a training computes. The one file that knows devices, precision and processes.

Lightning Fabric finds the devices, starts torch.distributed and owns autocast; the loop in `fit.py` is ours. Start one process
per GPU with `torchrun --nproc_per_node=N` or `srun`; without either there is one process.

Gradients are averaged here in one message after the last micro-batch, instead of by DistributedDataParallel. It gives the same numbers,
leaves the method unwrapped (frozen teachers, unused heads and methods without `forward` need no special case), and costs the overlap of
sending with the backward pass.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oligovox.errors import SettingsError
from oligovox.sample.batch import Batch
from oligovox.settings import Settings

T = TypeVar("T")


class Hardware(Settings):
    """On what a training computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="auto: bf16-mixed where the GPU, or the CPU (avx512_bf16), computes it natively"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of one process; None: PyTorch's choice")
    channels_last: bool = Field(True, description="memory layout of 3-D convolutions; 1.2 to 1.5 times faster")
    compile: bool = Field(False, description="torch.compile each network; worth trying on a GPU only")


class Runtime:
    """Device, precision and processes of this run.

    Attributes:
        device: where this process computes.
        precision: "32-true" or "bf16-mixed"; never "auto".
        rank: number of this process, from 0.
        world: number of processes.

    Raises:
        SettingsError: CUDA is asked for where there is none; the cluster's variables contradict each other.
    """

    def __init__(self, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()
        cuda = torch.cuda.is_available() if self._hardware.device == "auto" else self._hardware.device == "cuda"
        if cuda and not torch.cuda.is_available():
            raise SettingsError(
                f"device: cuda, but PyTorch {torch.__version__} sees no GPU here; "
                "set device: cpu (or auto), or install a CUDA build of PyTorch on a machine with a GPU"
            )
        if self._hardware.threads:
            torch.set_num_threads(self._hardware.threads)
        if cuda:
            torch.backends.cudnn.benchmark = True  # patches have one size, so the search pays once
        else:
            tune_allocator()
        self.precision: Literal["32-true", "bf16-mixed"] = _precision(self._hardware.precision, cuda)
        self._fabric = _launch("cuda" if cuda else "cpu", self.precision)
        self.device: torch.device = self._fabric.device
        self.rank: int = self._fabric.global_rank
        self.world: int = self._fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def place(self, method: nn.Module) -> None:
        """Move a method to the device, in place; with `compile`, its parts are compiled at their first call."""
        method.to(self.device)
        if self._hardware.channels_last:
            for parameter in method.parameters():
                if parameter.ndim == 5:  # a convolution's weight; what it is convolved with follows
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        if self._hardware.compile:
            for part in method.children():
                part.compile()

    def pinned(self, batch: Batch) -> Batch:
        """The same batch, in pinned memory where the device is a GPU: its copy then overlaps with computing."""
        if self.device.type != "cuda":
            return batch
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        pinned: dict[str, Any] = {name: v.pin_memory() for name, v in values.items() if isinstance(v, Tensor)}
        return replace(batch, **pinned)

    def seeded(self, seed: int, step: int, micro: int) -> torch.Generator:
        """The generator of one micro-batch, on the device; also seeds torch's own generators, from which dropout draws.

        Both seeds are words of numpy's SeedSequence((seed, step, micro)): a pure function of the three, so nothing random is
        ever saved, and a resumed run draws what the uninterrupted one did.

        Args:
            seed: of the training, ≥ 0.
            step: optimiser step, from 0.
            micro: number of the micro-batch within the step, over all processes.
        """
        views, dropout = np.random.SeedSequence((seed, step, micro)).generate_state(2, np.uint64)
        torch.manual_seed(int(dropout))
        return torch.Generator(self.device).manual_seed(int(views))

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Give torch's global generators back as they were, on leaving."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Forward passes run in here: bfloat16 where `precision` says so."""
        careful = self.device.type == "cpu" and self.precision == "bf16-mixed"
        with self._fabric.autocast(), _SmallGridsInFloat32() if careful else nullcontext():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters'."""
        self._fabric.backward(loss)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mean of the gradients over all processes; one that has none counts as zeros, unless none has one."""
        if self.world == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        complete = all(p.grad is not None for p in parameters)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = self.mean(torch.cat([used, *(p.grad.flatten() for p in parameters if p.grad is not None)]))
        used, *means = torch.split(flat, [len(parameters), *(p.numel() for p in parameters)])
        anywhere = [True] * len(parameters) if complete else (used > 0).tolist()
        for p, mean, needed in zip(parameters, means, anywhere, strict=True):
            if needed and p.grad is not None:
                p.grad.copy_(mean.view_as(p))
            else:
                p.grad = None

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of a tensor over all processes; the tensor itself where there is one."""
        if self.world == 1:
            return tensor
        reduced: Tensor = self._fabric.all_reduce(tensor, reduce_op="mean")
        return reduced

    def share(self, value: T, source: int = 0) -> T:
        """What process `source` holds, in every process (plain values, tensors on the CPU)."""
        if self.world == 1:
            return value
        shared: T = self._fabric.broadcast(value, src=source)
        return shared

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self._fabric.barrier()


class Interrupt:
    """Turns SIGTERM and Ctrl-C into a wish that is granted between two steps; a second Ctrl-C ends at once.

    Attributes:
        signal: name of the signal that came; None so far.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody handle signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


class _SmallGridsInFloat32(TorchFunctionMode):
    """Convolves grids with a side no longer than the kernel in float32.

    In bfloat16 on the CPU, PyTorch 2.13 (oneDNN 3.12) leaves parts of such a convolution's weight gradient unwritten or writes beside it:
    random numbers, NaN or a crash. Deep stages of a small patch meet this: 64 voxels at stride 32 are 2, the kernel is 3.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv3d, torch.conv_transpose3d):
            image, weight = args[:2]
            if any(side <= kernel for side, kernel in zip(image.shape[2:], weight.shape[2:], strict=True)):
                with torch.autocast("cpu", enabled=False):
                    return func(image.float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def tune_allocator() -> bool:
    """Let glibc keep freed memory instead of handing big tensors back to the kernel at each step; call before the first tensor.

    Measured on two cores: a training step takes 1.1 to 1.6 times less CPU time, at up to 1.75 times the memory.

    Returns:
        Whether anything was set; False elsewhere than on glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
        return all(mallopt(*p) for p in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 * 2**20)))
    except (OSError, AttributeError):
        return False


def _precision(asked: Literal["auto", "32-true", "bf16-mixed"], cuda: bool) -> Literal["32-true", "bf16-mixed"]:
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_has_bf16()
    return "bf16-mixed" if native else "32-true"


def _cpu_has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _launch(accelerator: str, precision: str) -> Any:
    from lightning_fabric import Fabric  # here, since the import takes seconds

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its banners; warnings stay
    here, nodes = _processes()
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=here,
            num_nodes=nodes,
            precision=precision,
            strategy="ddp" if here * nodes > 1 else "auto",
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{here * nodes} process(es) on {nodes} node(s) cannot start: {reason}") from error
    if here * nodes > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Close the connection between processes before Python takes itself down; without it gloo's threads may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def processes() -> int:
    """How many train together, as torchrun or srun started them."""
    here, nodes = _processes()
    return here * nodes


def _processes() -> tuple[int, int]:
    """Processes on this node and number of nodes, as torchrun or srun started them."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        here = int(env["LOCAL_WORLD_SIZE"])
        return here, int(env["WORLD_SIZE"]) // here
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env.get("SLURM_NNODES", "1"))
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1
