"""How fast this machine runs the networks, and how fast it could: `mambair speed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch
from rich.table import Table

from mambair_cli import archs
from mambair_cli.errors import UsageError
from mambair_cli.models.spec import ModelSpec
from mambair_cli.speed import op
from mambair_cli.speed.machine import Rates, describe, measure_rates, using_threads
from mambair_cli.speed.network import NetworkSpeed, measure_network
from mambair_cli.speed.op import ScanSpeed, measure_scan
from mambair_cli.speed.ops import Ops, measure_ops

__all__ = ["DEFAULT_SIZES", "NetworkSpeed", "OpsReport", "ScanSpeed", "SpeedReport"]
__all__ += ["measure_all_ops", "measure_scans", "measure_speed"]

LEAST_PIXELS = 128 * 128  # of an input, for its time to say something about photographs
NETWORK_TIMES = ("scan", "floor s", "time/floor", "work/floor")
DEFAULT_SIZES = ((64, 64), (128, 128), (256, 256), (512, 512))


@dataclass(frozen=True)
class SpeedReport:
    """Rows of one kind, all from one run, and the machine that they were measured on."""

    machine: dict[str, object]
    rates: Rates
    rows: list[NetworkSpeed] | list[ScanSpeed]

    def document(self) -> dict[str, object]:
        """Ready for JSON."""
        return {"schema": 1, "machine": self.machine, "rows": [asdict(row) for row in self.rows]}

    @property
    def seconds_per_megapixel(self) -> dict[str, float]:
        """Of input, for every network, at the largest size measured; none of sizes too small to say."""
        networks = [row for row in self.rows if isinstance(row, NetworkSpeed) and row.pixels >= LEAST_PIXELS]
        return {row.model: row.seconds / row.pixels * 1e6 for row in sorted(networks, key=lambda row: row.pixels)}

    def tables(self) -> list[Table]:
        """What people read."""
        scans = [row for row in self.rows if isinstance(row, ScanSpeed)]
        networks = [row for row in self.rows if isinstance(row, NetworkSpeed)]
        table = _scan_table(scans) if scans else _network_table(networks)
        table.title = f"{self.machine['device']}, scan by {self.machine['scan']}"
        table.caption = f"in this run: {self.rates}"
        return [table]


@dataclass(frozen=True)
class OpsReport:
    """Networks op by op, on one picture each."""

    machine: dict[str, object]
    rows: list[Ops]

    def document(self) -> dict[str, object]:
        """Ready for JSON: for each op its calls, seconds and floor; the speedup by cores as the model has it."""
        return {"schema": 1, "machine": self.machine, "rows": [row.document() for row in self.rows]}

    def tables(self) -> list[Table]:
        """What people read."""
        return [row.table() for row in self.rows]


def measure_all_ops(
    specs: Sequence[ModelSpec],
    sizes: Sequence[tuple[int, int]],
    device: torch.device | str = "cpu",
    threads: int | None = None,
    rounds: int = 7,
) -> OpsReport:
    """Every model on every size (height, width), on one thread; `threads`: what is measured beside that.

    Raises UsageError for sizes that a network does not take, and for devices other than the CPU.
    """
    cpu = torch.device(device)
    if cpu.type != "cpu":
        raise UsageError("The ops can be looked at on a CPU only.", "Add --device cpu.")
    check_sizes(specs, sizes)
    with using_threads(1):
        rates = measure_rates(cpu)
    with using_threads(threads):
        rows = [
            measure_ops(f"{spec.name}, {size[1]}x{size[0]}", network, spec.channels, size, rates, rounds)
            for spec in specs
            for network in [archs.build(spec.arch, **spec.kwargs).eval()]
            for size in sizes
        ]
    return OpsReport(describe(cpu, rates), rows)


def check_sizes(specs: Sequence[ModelSpec], sizes: Sequence[tuple[int, int]]) -> None:
    """Raise UsageError for sizes that a network does not take."""
    for spec, size in product(specs, sizes):
        padding = archs.find(spec.arch).padding
        if not all(padding.takes(side) for side in size):
            raise UsageError(
                f"{spec.name} takes no {size[1]}x{size[0]} as it is.",
                f"Sides are multiples of {padding.multiple}, at least {padding.minimum}.",
            )


def measure_speed(
    specs: Sequence[ModelSpec],
    sizes: Sequence[tuple[int, int]] = DEFAULT_SIZES,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    backward: bool = False,
) -> SpeedReport:
    """Time every model on every size (height, width); the training too with `backward`.

    The weights are random: speed does not depend on them. Raises UsageError for sizes that a network does not take.
    """
    device = torch.device(device)
    check_sizes(specs, sizes)
    with using_threads(threads):
        rates = measure_rates(device)
        rows = [
            measure_network(spec.name, network, spec.channels, size, rates, backward)
            for spec in specs
            for network in [archs.build(spec.arch, **spec.kwargs).eval().to(device)]
            for size in sizes
        ]
        return SpeedReport(describe(device, rates), rates, rows)


def measure_scans(device: torch.device | str = "cpu", threads: int | None = None) -> SpeedReport:
    """Time the op alone on every back end of a device; on a CPU with one thread and with all."""
    device = torch.device(device)
    counts: Sequence[int | None] = [threads]
    if device.type == "cpu" and not threads:
        counts = sorted({1, torch.get_num_threads()})
    rows: list[ScanSpeed] = []
    for count in counts:
        with using_threads(count):
            rates = measure_rates(device)
            rows += [measure_scan(*what, device, rates) for what in product(op.LAYERS, op.backends_on(device))]
            machine = describe(device, rates)
    return SpeedReport(machine, rates, rows)


def _network_table(rows: Sequence[NetworkSpeed]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    headings = [*("input", "s/image", "MP/s in", "out", "us/px", "GMAC", "MB"), *NETWORK_TIMES]
    if any(row.backward_ratio for row in rows):
        headings.append("bwd/fwd")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        cells = [r.model, f"{r.size[1]}x{r.size[0]}", f"{r.seconds:.3f}", f"{r.input_mp_per_s:.3f}"]
        cells += [
            f"{r.output_mp_per_s:.3f}",
            f"{r.seconds / r.pixels * 1e6:.1f}",
            f"{r.total_macs / 1e9:.2f}",
            f"{r.peak_memory / 1e6:.0f}",
        ]
        cells += [
            f"{r.scan_share:.0%}",
            f"{r.floor:.3f}",
            f"[bold]{r.ratio:.2f}[/]",
            f"{r.work_ratio:.2f}" if r.work_ratio else "",
        ]
        cells += [f"{r.backward_ratio:.2f}"] if r.backward_ratio else []
        table.add_row(*cells)
    return table


def _scan_table(rows: Sequence[ScanSpeed]) -> Table:
    """Rates in G state updates per second."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("layer", "backend", "threads", "forward G/s", "backward G/s", "forward / exp rate"):
        table.add_column(heading, justify="left" if heading in ("layer", "backend") else "right", no_wrap=True)
    for row in rows:
        height, width, channels, states, _ = op.LAYERS[row.layer]
        cells = [f"{row.layer} {width}x{height}, D={channels} N={states}", row.backend, str(row.threads)]
        cells += [f"{row.forward / 1e9:.2f}", f"{row.backward / 1e9:.2f}", f"{row.of_exp_rate:.2f}"]
        table.add_row(*cells)
    return table
