"""Devices: how fast memory can be read, how fast numbers are multiplied, how much fits. Each figure with its source.

Units: bandwidth in bytes per second (datasheets: 10^9), arithmetic in operations per second, a multiply and an add
being two; memory in bytes. Memory sizes on datasheets count 2^30: the card sold with "24 GB" holds 24 * 2^30 bytes, of
which the driver shows a little less. Arithmetic is dense: figures that a datasheet prints "with sparsity" are halved.

    rate       multiplies, and adds in
    fp16       float16 or bfloat16 on tensor cores, accumulated in float32
    fp8, int8  the same on tensor cores, where they exist
    fp32       float32 on the general cores: what decodes quantized weights

These are peaks. A good kernel reaches 80 to 95 % of the bandwidth (`speedup.fit_line` gets it from measurements).
Leaves out: anything whose maker prints no figure (Apple gives bandwidths, but arithmetic only for the M1 generation).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from refquant.bandwidth.units import GIB, positive
from refquant.errors import UnknownName

RATES = ("fp16", "fp8", "int8", "fp32")


@dataclass(frozen=True)
class Device:
    """A place where weights lie and are multiplied. `kind`: gpu, unified (CPU and GPU share memory), cpu.

    bandwidth : bytes per second, peak read.
    memory : bytes, or None where it depends on the modules bought.
    rates : operations per second by what is multiplied; empty where none is published.
    """

    name: str
    title: str
    kind: str
    bandwidth: float
    memory: int | None
    source: str
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        positive(f"bandwidth of {self.name} (bytes per second)", self.bandwidth)
        if self.memory is not None:
            positive(f"memory of {self.name} (bytes)", self.memory)
        for numbers, rate in self.rates.items():
            if numbers not in RATES:
                raise UnknownName("arithmetic rate", numbers, RATES)
            positive(f"{numbers} rate of {self.name} (operations per second)", rate)

    def rate(self, numbers: str) -> float:
        """Operations per second on `numbers` ("fp16", ...); raise `UnknownName`, which lists the published ones."""
        if numbers not in self.rates:
            raise UnknownName(f"arithmetic rate of {self.name}", numbers, self.rates or ["none is published"])
        return self.rates[numbers]

    def ridge(self, numbers: str = "fp16") -> float:
        """Operations per byte above which arithmetic, and no longer memory, sets the time."""
        return self.rate(numbers) / self.bandwidth


def dual_channel(megatransfers: float, channels: int = 2) -> float:
    """Bytes per second of `channels` 64-bit memory channels at so many 10^6 transfers per second."""
    return positive("channels", channels) * 8 * positive("transfers per second", megatransfers) * 1e6


_A100 = "NVIDIA A100 Tensor Core GPU datasheet (2021)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet (2023), figures with sparsity halved"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix A, dense, float32 accumulation"
_APPLE = "Apple newsroom and technical specifications, "
_AMPERE = {"fp16": 312e12, "int8": 624e12, "fp32": 19.5e12}

# name | title | kind | GB/s | GiB | source | rates
_TABLE = (
    ("a100-40gb", "NVIDIA A100 40 GB", "gpu", 1555, 40, _A100, _AMPERE),
    ("a100-80gb", "NVIDIA A100 80 GB SXM", "gpu", 2039, 80, _A100, _AMPERE),
    ("a100-80gb-pcie", "NVIDIA A100 80 GB PCIe", "gpu", 1935, 80, _A100, _AMPERE),
    (
        "h100-sxm",
        "NVIDIA H100 SXM",
        "gpu",
        3350,
        80,
        _H100,
        {"fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12, "fp32": 67e12},
    ),
    (
        "h100-pcie",
        "NVIDIA H100 PCIe",
        "gpu",
        2000,
        80,
        _H100,
        {"fp16": 756.5e12, "fp8": 1513e12, "int8": 1513e12, "fp32": 51e12},
    ),
    (
        "h200",
        "NVIDIA H200 SXM",
        "gpu",
        4800,
        141,
        "NVIDIA H200 Tensor Core GPU datasheet (2023), figures with sparsity halved",
        {"fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12, "fp32": 67e12},
    ),
    (
        "l4",
        "NVIDIA L4",
        "gpu",
        300,
        24,
        "NVIDIA L4 Tensor Core GPU datasheet (2023), figures with sparsity halved",
        {"fp16": 121e12, "fp8": 242.5e12, "int8": 242.5e12, "fp32": 30.3e12},
    ),
    (
        "rtx-a6000",
        "NVIDIA RTX A6000",
        "gpu",
        768,
        48,
        "NVIDIA RTX A6000 datasheet (2020), figures with sparsity halved",
        {"fp16": 154.85e12, "fp32": 38.7e12},
    ),
    (
        "rtx-4090",
        "NVIDIA GeForce RTX 4090",
        "gpu",
        1008,
        24,
        _ADA,
        {"fp16": 165.2e12, "fp8": 330.3e12, "int8": 660.6e12, "fp32": 82.6e12},
    ),
    ("m1-max", "Apple M1 Max", "unified", 400, 64, _APPLE + "October 2021", {"fp32": 10.4e12}),
    ("m1-ultra", "Apple M1 Ultra", "unified", 800, 128, _APPLE + "March 2022", {"fp32": 21e12}),
    ("m2-max", "Apple M2 Max", "unified", 400, 96, _APPLE + "January 2023", {}),
    ("m2-ultra", "Apple M2 Ultra", "unified", 800, 192, _APPLE + "June 2023", {}),
    ("m3-max", "Apple M3 Max (40-core GPU)", "unified", 400, 128, _APPLE + "October 2023", {}),
    ("m3-max-30", "Apple M3 Max (30-core GPU)", "unified", 300, 96, _APPLE + "October 2023", {}),
    ("m4-max", "Apple M4 Max (40-core GPU)", "unified", 546, 128, _APPLE + "October 2024", {}),
    ("m4-max-32", "Apple M4 Max (32-core GPU)", "unified", 410, 36, _APPLE + "October 2024", {}),
    (
        "ddr4-3200",
        "DDR4-3200, two channels",
        "cpu",
        dual_channel(3200) / 1e9,
        None,
        "JEDEC JESD79-4: 2 channels x 8 bytes x 3.2e9 transfers/s",
        {},
    ),
    (
        "ddr5-5600",
        "DDR5-5600, two channels",
        "cpu",
        dual_channel(5600) / 1e9,
        None,
        "JEDEC JESD79-5: 2 channels x 8 bytes x 5.6e9 transfers/s",
        {},
    ),
)
DEVICES = {
    name: Device(name, title, kind, gigabytes * 1e9, gib and gib * GIB, source, rates)
    for name, title, kind, gigabytes, gib, source, rates in _TABLE
}
ALIASES = {
    "a100": "a100-80gb",
    "h100": "h100-sxm",
    "4090": "rtx-4090",
    "rtx4090": "rtx-4090",
    "a6000": "rtx-a6000",
    "ddr4": "ddr4-3200",
    "ddr5": "ddr5-5600",
}
THIS = "this-machine"


def find_device(name: str | Device) -> Device:
    """Return the device called `name` (or an alias), or measure `this-machine`; `UnknownName` lists the known ones."""
    if isinstance(name, Device):
        return name
    key = str(name).lower()
    if key == THIS:
        from refquant.bandwidth.probe import this_machine

        return this_machine()
    key = ALIASES.get(key, key)
    if key not in DEVICES:
        raise UnknownName("device", name, [*DEVICES, *ALIASES, THIS])
    return DEVICES[key]


def custom(name: str, gigabytes_per_second: float, gib: float | None = None, kind: str = "gpu", **rates) -> Device:
    """Describe a device that is not in the table: 10^9 bytes per second, 2^30 bytes, operations per second by name."""
    positive("bandwidth (GB/s)", gigabytes_per_second)
    memory = None if gib is None else math.floor(positive("memory (GiB)", gib) * GIB)
    return Device(name, name, kind, gigabytes_per_second * 1e9, memory, "given by the caller", rates)
