"""What quantizing a model came to."""

from dataclasses import dataclass, field


@dataclass
class Layer:
    """One quantized layer: what became of it, and its relative squared output error where inputs were seen."""

    name: str
    format: str
    shape: tuple[int, int]
    nbytes: int
    error: float | None


@dataclass
class Report:
    """What `quantize` did. Sizes in bytes.

    `other_bytes` is what the rest of the model takes: two a parameter, as it is served, or as the GGUF file stores it.
    `fallbacks` counts matrices whose rows the mix's own type could not hold.
    """

    method: str
    grid: str
    seconds: float = 0.0
    layers: list[Layer] = field(default_factory=list)
    other_bytes: int = 0
    fallbacks: int = 0

    @property
    def weights(self) -> int:
        """Number of quantized weights."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantized weight, scales and zero-points included."""
        return 8 * sum(layer.nbytes for layer in self.layers) / self.weights

    @property
    def model_bytes(self) -> int:
        """Bytes of the whole model."""
        return sum(layer.nbytes for layer in self.layers) + self.other_bytes
