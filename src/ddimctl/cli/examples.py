"""Two examples of each command, for its help and for the command reference."""

from typing import Final

EXAMPLES: Final = {
    "sample": (
        ("sixteen images", "ddimctl sample"),
        ("more steps, one class", "ddimctl sample -n 64 --steps 50 --class peep --guidance 2"),
    ),
    "invert": (
        ("the latent of an input image", "ddimctl invert photo.png"),
        ("a folder of input images", "ddimctl invert photos/ --out latents --batch-size 8"),
    ),
    "interpolate": (
        ("between two images", "ddimctl interpolate a.png b.png --video gif"),
        ("a grid of four seeds", "ddimctl interpolate --seeds 3,9,12,31 --class peep --grid 8x8"),
    ),
    "reconstruct": (
        ("the paper's Table 2", "ddimctl reconstruct images.zip --steps 10,20,50,100"),
        ("two methods, eight images", "ddimctl reconstruct photos/ --method exact,naive --limit 8"),
    ),
    "evaluate": (
        ("the paper's Table 1", "ddimctl evaluate --data images.zip --steps 10,20,50 --eta 0,1"),
        ("existing images", "ddimctl evaluate --samples images/ --data images.zip"),
    ),
    "reference": (
        ("a data set's statistics", "ddimctl reference images.zip --size 32"),
        ("with Inception features", "ddimctl reference images.zip --size 32 --metric swd,fid"),
    ),
    "train": (
        ("from scratch", "ddimctl train images.zip --out run --model small"),
        ("from a checkpoint", "ddimctl train photos/ --out run --init google/ddpm-cifar10-32"),
    ),
    "info": (
        ("the bundled checkpoint", "ddimctl info"),
        ("one on the hub, for scripts", "ddimctl info google/ddpm-cifar10-32 --json"),
    ),
    "convert": (
        ("a single file", "ddimctl convert model-790000.ckpt cifar10/"),
        (
            "a setting missing from the file",
            "ddimctl convert net.pt out/ --model-flag num_heads=4",
        ),
    ),
    "replay": (
        ("the images of a run", "ddimctl replay runs/00000-sample"),
        ("an image with its settings in it", "ddimctl replay 000007.png --out again"),
    ),
}

BEGIN: Final = (
    "Begin with [bold]ddimctl sample[/bold], which needs no options. "
    "[bold]ddimctl COMMAND --help[/bold] shows examples."
)


def epilog(command: str) -> str:
    """The examples as the end of a help text; each line is short enough for 80 columns."""
    lines = (f"[dim]# {what}[/dim]\n[bold]{line}[/bold]" for what, line in EXAMPLES[command])
    return "Examples:\n\n" + "\n\n".join(lines)
