"""What is asked of a run."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxaudio.core import InputError, Model
from jaxaudio.runtime import command
from jaxaudio.runtime.profile import span_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is about this run and this machine; what the paper states is a field of the model."""

    model: Model  # the paper's hyper-parameters
    data: tuple[Path, ...] = ()  # folders of recordings of any kind; none: the built-in synthesiser
    label: str | None = None  # what a class is: a column of metadata.csv; none: label or, of a model of notes, pitch
    noise: tuple[Path, ...] = ()  # of a model that learns from noise: folders of it; none: the built-in synthesiser
    mels: Path | None = None  # of a vocoder: a folder of features to learn from, a/b.npy of a recording a/b.wav
    codec: Path | None = None  # of a model that learns codes: the run of the codec that makes them
    codec_checkpoint: str = "latest"  # of that run: latest, best, or a step's number
    begin: Path | None = None  # a run whose networks this one begins with, to fine-tune them; optimisers start anew
    begin_checkpoint: str = "latest"  # of that run: latest, best, or a step's number
    out: Path  # the run's folder
    store: str | None = None  # gs://BUCKET/FOLDER: a copy of it, from which a machine that has nothing goes on
    steps: int | None = None  # training steps in all; none: as many as the model says
    seed: int = 0  # of the weights, the noise and the order of the data
    seeds: int = 1  # so many runs in one program, of this seed and those behind it: OUT/seed-0, ...
    parallel: Literal["jit", "pmap"] = "jit"  # how the step is spread over the devices
    fsdp: bool = False  # each device keeps a part of large parameters and of their moments, of jit alone
    gather: Literal["auto", "host", "device"] = "auto"  # where crops are cut; auto: on an accelerator that has room
    log_every: int = 20  # steps
    eval_every: int = 1000  # steps; evaluates on held-out recordings, writes samples, saves
    save_every: int = 500  # steps
    keep: int = 2  # latest checkpoints kept, beside the best one
    samples: int = 16  # sounds written at each evaluation
    eval_clips: int = 512  # held-out clips per evaluation, at most
    patience: int = 25  # updates of a network in a row without a finite gradient that stop the run
    deterministic: bool = False  # bit-for-bit repeatable on a GPU too, slower
    profile: str | None = None  # FIRST:LAST, steps from this start on: their trace, for TensorBoard, in OUT/profile
    distributed: bool = False  # one process of several; which, is found on Cloud TPU, Slurm, Kubernetes and Open MPI
    coordinator: str | None = None  # elsewhere: HOST:PORT of process 0
    processes: int | None = None  # elsewhere: how many there are
    process: int | None = None  # elsewhere: which one this is
    join_seconds: int = 300  # how long to wait for the other processes
    lost_seconds: int = 60  # without a sign of life, after which one of them is given up

    @property
    def where(self) -> str:
        """Where crops are cut: what lies beside recordings is on the host."""
        return "host" if self.codec or self.mels else self.gather

    def __post_init__(self):
        every = "log_every", "eval_every", "save_every", "join_seconds", "lost_seconds"
        for name in (*every, "steps", "seeds", "keep", "samples", "eval_clips", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 1")
        command.check_seed(self.seed)
        command.check_seed(self.seed + self.seeds - 1)
        if self.profile:
            span_of(self.profile)
        for name in ("coordinator", "processes", "process"):
            if getattr(self, name) is not None and not self.distributed:
                raise InputError(f"{name} is {getattr(self, name)}: it goes with --distributed")
