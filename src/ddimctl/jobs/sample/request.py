"""The options of `ddimctl sample`."""

from dataclasses import dataclass, field

from ddimctl.jobs.requests import (
    CheckpointOptions,
    DeviceOptions,
    ImageOptions,
    ImageOutputOptions,
    PromptOptions,
    SamplerOptions,
)


@dataclass(frozen=True)
class SampleRequest:
    """What to sample and how."""

    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    output: ImageOutputOptions = field(default_factory=ImageOutputOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)

    @property
    def outputs(self) -> "OutputSettings":
        """What the run writes."""
        return OutputSettings(
            save=self.output.save,
            format=self.output.format,
            scale=self.output.scale,
            columns=self.output.columns,
            metadata=not self.output.no_metadata,
            deterministic=self.device.deterministic,
            compile=self.device.compile,
        )


@dataclass(frozen=True)
class OutputSettings:
    """What a sampling run writes, and what decides its bytes besides the plan.

    save: which outputs.  scale, columns: of the grid; None chooses.  metadata: whether images carry
    their settings.
    """

    save: tuple[str, ...] = ("grid", "images", "latents")
    format: str = "png"
    scale: int | None = None
    columns: int | None = None
    metadata: bool = True
    deterministic: bool = False
    compile: bool = False
