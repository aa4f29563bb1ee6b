"""The plan past these machines: what the lines of `scale_model` say of a terabyte, a hundred, and ten trillion tokens.

Besides the measured lines it takes three published figures of Common Crawl (`CRAWL`), a machine (`MACHINE`) and the
published speed of a GPU (`llm_core.scaling.devices`); all stand in the tables that it makes for docs/scale.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_core.data import neardup
from llm_core.data.minhash import BYTES
from llm_core.scaling import recipe
from llm_core.scaling.devices import TABLE
from llm_core.settings.tokenize import TokenizeConfig

DAY = 86_400.0
CRAWL = {"bytes": 75e12, "pages": 3e9, "tokens": 15e12 / 96}
"""Of one of Common Crawl's crawls: bytes of WARC (about 75 TB: Thompson 2024, arXiv:2404.09770), pages, and the tokens
that FineWeb's 15 trillion of 96 crawls make of it (Penedo et al. 2024, arXiv:2406.17557)."""
PER_PARAMETER = 20
"""Tokens for each parameter (Hoffmann et al. 2022)."""
WRITES = 3_500
"""Writes a second that S3 takes for one prefix; of reads it is 5,500."""
LARGEST = 8e9
"""Parameters at which the plan's models stop growing: beyond it the tokens outnumber what is best for the size."""
TRAINING_DAYS = 14.0
TARGETS = {
    "1 TB of WARC": 1e12,
    "100 TB of WARC": 1e14,
    "10 trillion tokens": 1e13 * CRAWL["bytes"] / CRAWL["tokens"],
}


@dataclass(frozen=True)
class Machine:
    """One of the machines that a plan counts."""

    cores: int = 64
    memory: float = 256e9
    disk: float = 8e12
    network: float = 1.25e9
    """Bytes a second: 10 gigabit."""


MACHINE = Machine()
Results = dict[str, Any]


def slope(results: Results, job: str, quantity: str) -> float:
    """What a unit costs."""
    return float(results[job]["lines"][quantity]["unit"])


def start(results: Results, job: str, quantity: str) -> float:
    """What a start costs."""
    return float(results[job]["lines"][quantity]["start"])


@dataclass(frozen=True)
class Need:
    """What a stage needs: core seconds of its workers, seconds and memory of its driver, bytes."""

    stage: str
    units: str
    worker_s: float
    driver_s: float
    driver_memory: float
    out_bytes: float
    scratch_bytes: float = 0.0
    pieces: float = 0.0
    """Pieces of work that workers are given: in a store, each is a read and a write."""

    @property
    def machines(self) -> int:
        """Machines whose cores do the workers' part in a day."""
        return max(1, math.ceil(self.worker_s / DAY / MACHINE.cores))


def warc_per_page(results: Results) -> float:
    """WARC bytes of a page of the measured corpus."""
    unit = results["clean"]["extras"]["warc_bytes"] / results["clean"]["medians"]["16x"]["units"]
    return float(unit)


def needs(results: Results, warc: float) -> list[Need]:
    """What the data stages need for so many bytes of WARC."""
    pages, tokens = warc * CRAWL["pages"] / CRAWL["bytes"], warc * CRAWL["tokens"] / CRAWL["bytes"]
    text = tokens * text_per_token(results)
    sample = min(text, TokenizeConfig().sample_bytes)
    share = warc / warc_per_page(results)  # the work of a page goes with its bytes
    vocabulary = results["vocabulary"]["lines"]["cpu_s"]
    return [
        Need("acquire", f"{warc / 1e9:,.0f} files of 1 GB", 0.0, slope(results, "acquire", "cpu_s") * warc,
             1e6 * start(results, "acquire", "driver_peak_mb"), slope(results, "acquire", "out_bytes") * warc,
             pieces=warc / 1e9),
        Need("clean", f"{pages:.2g} pages", slope(results, "clean", "worker_cpu_s") * share,
             slope(results, "clean", "driver_cpu_s") * pages,
             1e6 * (start(results, "decide", "driver_peak_mb") + slope(results, "decide", "driver_peak_mb") * pages),
             text * slope(results, "clean", "out_bytes") / text_per_page(results),
             slope(results, "clean", "scratch_bytes") * share, pieces_per_unit(results, "clean") * pages),
        Need("tokenize", f"{text / 1e9:,.0f} GB of text", slope(results, "tokenize", "worker_cpu_s") * text,
             slope(results, "tokenize", "driver_cpu_s") * text + vocabulary["start"] + vocabulary["unit"] * sample,
             1e6 * (start(results, "tokenize", "driver_peak_mb") + slope(results, "tokenize", "driver_peak_mb") * text),
             tokens * (2 if TokenizeConfig().vocab_size <= 1 << 16 else 4),
             pieces=pieces_per_unit(results, "tokenize") * text),
    ]  # fmt: skip


def pieces_per_unit(results: Results, job: str) -> float:
    """Pieces of work for each unit of a job."""
    return float(results[job]["extras"].get("pieces", 0) / results[job]["medians"]["16x"]["units"])


def text_per_token(results: Results) -> float:
    """Bytes of text for each token, by the measured tokenizer."""
    return float(results["tokenize"]["medians"]["16x"]["units"] / results["tokenize"]["extras"]["tokens"])


def text_per_page(results: Results) -> float:
    """Bytes of text that are kept of a page of the measured corpus."""
    return float(results["clean"]["extras"]["text_bytes"] / results["clean"]["medians"]["16x"]["units"])


@dataclass(frozen=True)
class Training:
    """A model for so many tokens, and what training it needs."""

    parameters: int
    tokens: float
    flops: float
    gpu_hours: float
    gpus: int
    memory: float
    """Bytes of weights, gradients and optimizer, wherever they lie."""
    steps: int


def training(tokens: float, device: str = "H100") -> Training:
    """What pretrain needs: 20 tokens a parameter, at most 8 billion parameters, done in two weeks."""
    wanted = min(tokens / PER_PARAMETER, LARGEST)
    shape = min(recipe.family(None, 2048), key=lambda shape: abs(math.log(shape.parameters() / wanted)))
    gpu, once = TABLE[device], shape.memory(1, "muon", "bf16")
    seconds = tokens / gpu.tokens_per_second(shape)
    return Training(shape.parameters(), tokens, tokens * shape.flops_per_token(), seconds / 3600,
                    max(1, math.ceil(seconds / DAY / TRAINING_DAYS)), once.weights + once.gradients + once.optimizer,
                    round(tokens / recipe.batch_tokens(tokens)))  # fmt: skip


def largest_on_one_gpu(device: str = "H100") -> int:
    """Parameters of the largest model of the family that trains on one GPU, one sequence in a pass."""
    room = 0.9 * TABLE[device].memory
    fitting = [s for s in recipe.family(None, 2048) if recipe.training_memory(s, 1, 1, "bf16") <= room]
    return fitting[-1].parameters()


def breaks(results: Results) -> list[tuple[str, str, str, str]]:
    """(stage, what runs out, where, what changes then), the earliest of each stage first."""
    per_tb = CRAWL["pages"] / CRAWL["bytes"] * 1e12

    def pages(count: float) -> str:
        return f"{count:.2g} pages, {amount(count / per_tb * 1e12)} of WARC"

    keeps_up = until(slope(results, "clean", "worker_cpu_s"), slope(results, "clean", "driver_cpu_s"))
    a_day = until(DAY, slope(results, "clean", "driver_cpu_s"))
    room = MACHINE.memory / 1e6 - start(results, "decide", "driver_peak_mb")
    memory = until(room, slope(results, "decide", "driver_peak_mb"))
    read = until(DAY, slope(results, "acquire", "cpu_s"))
    text = until(DAY, slope(results, "tokenize", "driver_cpu_s"))
    files = 1_000 * neardup.MEMORY / neardup._ENTRY_BYTES
    single = largest_on_one_gpu()
    asked = until(WRITES * slope(results, "clean", "worker_cpu_s"), pieces_per_unit(results, "clean"))
    return [
        ("acquire", "one process reads the WARC files of a source", f"{amount(read)} of WARC in a day",
         "a source for each piece of the listing, each in a build of its own on a machine of its own"),
        ("acquire", "one machine's network (10 Gbit/s)", f"{amount(MACHINE.network * DAY)} in a day",
         "the same, beside the store"),
        ("clean", "the driver takes in and writes what workers hand back, one after the other",
         f"{keeps_up:,.0f} cores keep one driver busy; {pages(a_day)} in a day",
         "a build for each crawl or part of one"),
        ("clean", f"the index in the driver's memory ({MACHINE.memory / 1e9:.0f} GB)", pages(memory),
         "a build for each crawl: copies are then looked for within a crawl, as FineWeb found to be best"),
        ("clean", "files that near duplicates are sorted in (14 times 1,000)", f"{files:.2g} signed documents",
         "a larger `neardup.MEMORY`"),
        ("clean", f"signatures and keys on the driver's disk ({MACHINE.disk / 1e12:.0f} TB)",
         f"{MACHINE.disk / (2 * BYTES):.2g} signed documents", "a build for each crawl"),
        ("clean", f"requests to one prefix of a store (S3: {WRITES:,} writes a second)", f"{asked:,.0f} cores",
         "a build for each crawl, each with a prefix of its own"),
        ("tokenize", "the driver surveys the corpus and gathers the parts", f"{amount(text)} of text in a day",
         "a build for each crawl with one `tokenizer_folder`; training reads their shards as sources"),
        ("pretrain", "weights, gradients and optimizer on one GPU of 80 GiB", f"{single / 1e9:.1f} billion parameters",
         "`parallel: fsdp` in a machine, `hsdp` across machines"),
    ]  # fmt: skip


def until(room: float, cost: float) -> float:
    """How many units there is room for."""
    return room / cost if cost > 0 else math.inf


def amount(size: float) -> str:
    """Bytes for people."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.3g} {unit}"
    return f"{size / 1e3:,.3g} kB"


def hours(seconds: float) -> str:
    """Hours for people."""
    return f"{seconds / 3600:,.0f} h" if seconds >= 36_000 else f"{seconds / 3600:,.1f} h"


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def constants(results: Results) -> str:
    """What a unit of each job costs."""
    rows = []
    for job, found in results.items():
        cells = [f"`{job}`", found["unit"]]
        for quantity in ("worker_cpu_s", "driver_cpu_s"):
            cells.append(f"{1e6 * slope(results, job, quantity):,.3g} µs")
        cells.append(f"{1e6 * slope(results, job, 'driver_peak_mb'):,.3g} B")
        cells += [f"{slope(results, job, name):,.3g} B" for name in ("out_bytes", "scratch_bytes")]
        rows.append(cells)
    heading = ["job", "unit", "workers' CPU", "driver's CPU", "driver's memory", "product", "disk on the way"]
    return table([heading[0], heading[1], *(f"{name}, a unit" for name in heading[2:])], rows)


def checked(results: Results) -> str:
    """How far the predictions were off."""
    names = {"cpu_s": "CPU", "driver_peak_mb": "driver's memory", "worker_peak_mb": "worker's memory",
             "out_bytes": "product", "scratch_bytes": "disk on the way"}  # fmt: skip
    rows = []
    for job, found in results.items():
        for times in (4.0, 16.0):
            off = {row["quantity"]: row["off"] for row in found["checks"] if row["times"] == times}
            cells = [f"{100 * off[name]:+.1f}%" if name in off else "" for name in names]
            rows.append([f"`{job}`", f"{times:g}x", *cells])
    return table(["job", "corpus", *names.values()], rows)


def planned(results: Results) -> str:
    """What the targets need."""
    rows = []
    for name, warc in TARGETS.items():
        for need in needs(results, warc):
            workers = f"{hours(need.worker_s)} of cores: {need.machines:,}" if need.worker_s else "none"
            rows.append([name, f"`{need.stage}`", need.units, workers, hours(need.driver_s),
                         amount(need.driver_memory), amount(need.out_bytes),
                         amount(need.scratch_bytes) if need.scratch_bytes else "", f"{need.pieces:.2g}"])  # fmt: skip
            name = ""
    heading = ["", "stage", "work", f"workers: machines of {MACHINE.cores} cores for a day", "driver, one core",
               "driver's memory", "product", "disk on the way", "pieces of work"]  # fmt: skip
    return table(heading, rows)


def trained(_: Results) -> str:
    """What training on the targets needs."""
    rows = []
    for name, warc in TARGETS.items():
        found = training(warc * CRAWL["tokens"] / CRAWL["bytes"])
        size = [f"{found.tokens:.2g}", f"{found.parameters / 1e9:.2g} billion", f"{found.flops:.2g}"]
        rows.append([name, *size, f"{found.gpu_hours:,.0f}", f"{found.gpus:,}", amount(found.memory),
                     f"{found.steps:,}"])  # fmt: skip
    heading = ["", "tokens", "parameters", "FLOPs", "H100 hours", f"H100s for {TRAINING_DAYS:.0f} days",
               "weights, gradients, optimizer", "steps"]  # fmt: skip
    return table(heading, rows)


def broken(results: Results) -> str:
    """Where each stage breaks first."""
    return table(
        ["stage", "what runs out", "where", "what changes then"],
        [[f"`{stage}`", *rest] for stage, *rest in breaks(results)],
    )


def basis(results: Results) -> str:
    """On what it was measured."""
    places = [found["where"] for found in results.values()]
    loads = max(place["load_average"][0] for place in places)
    return (
        f"Measured on {places[0]['device']} (load average up to {loads}), commit {places[0]['commit'][:10]}. Largest "
        f"deviation of a prediction: {100 * max(abs(c['off']) for f in results.values() for c in f['checks']):.1f}%. "
        f"A page there has {amount(warc_per_page(results))} of WARC and leaves {amount(text_per_page(results))} of "
        f"text; a token is {text_per_token(results):.2f} bytes."
    )


PLACES: dict[str, Callable[[Results], str]] = {
    "basis": basis,
    "constants": constants,
    "checked": checked,
    "planned": planned,
    "trained": trained,
    "broken": broken,
}
