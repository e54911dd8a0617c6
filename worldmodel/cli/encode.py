"""``worldmodel encode``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.options import Command, EncoderOptions, Result, Run, open_vision
from worldmodel.cli.workers import pool
from worldmodel.runtime import WorkerConfig


@dataclass(frozen=True, kw_only=True)
class EncodeRun(Run):
    """Device, earlier runs and output.

    Args:
        threads: torch's threads; None: torch's own. Another number may change the last bits of codes.
    """


@dataclass(frozen=True, kw_only=True)
class Encode(Command):
    """Encode the frames of a store with a trained V: mean and log-variance of z, in a store that M trains on.

    The same command resumes an interrupted encoding, and encodes episodes that were collected since.

    Args:
        data: directory written by worldmodel collect.
        vision: directory written by worldmodel train-vae.
        out: directory of the encoded store; None: DATA-encoded.
        workers: worker processes, which encode on the CPU; 0: none; the result is the same.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers encode (extra: dask); they must see
            DATA under the same path.
        encoder: how codes are stored.
        output: device, earlier runs and output.
    """

    RESUME = "Encoded episodes are kept; the same command resumes the encoding."

    data: str
    vision: str
    out: str | None = None
    workers: int = 0
    scheduler: str | None = None
    encoder: Flat[EncoderOptions] = field(default_factory=EncoderOptions)
    output: Flat[EncodeRun] = field(default_factory=EncodeRun)

    def run(self) -> Result:
        """Encode."""
        vision = open_vision(self.vision, self.output.choose_device())
        began = time.monotonic()
        with pool(WorkerConfig(num_workers=self.workers), self.scheduler) as workers:
            store = wm.encode_store(
                self.data,
                vision=vision,
                out=self.out or f"{self.data.rstrip('/')}-encoded",
                dtype=self.encoder.dtype,
                precision=self.encoder.precision,
                workers=workers,
                run=self.output.config(),
            )
        seconds = time.monotonic() - began
        text = (
            f"episodes  {len(store)}\nsteps     {store.num_steps}\nseconds   {seconds:.1f}\n"
            f"V         {vision.fingerprint}\nstore: {store.path}"
        )
        data = {"episodes": len(store), "steps": store.num_steps, "seconds": seconds}
        return Result(text, data | {"vision": vision.fingerprint, "store": str(store.path)})
