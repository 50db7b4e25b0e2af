"""From x_T to x_0, and back."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ddimctl.api.arguments import function, real, whole
from ddimctl.api.tensors import Integers, batch, classes, integers, visited
from ddimctl.diffusion import inversion, sampling, tau_search
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.inversion import TOLERANCE, Inversion, check_inversion
from ddimctl.diffusion.multistep import check_solver
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import Model, make_denoiser
from ddimctl.diffusion.sampling import Noise, Step
from ddimctl.diffusion.steps import check_variance
from ddimctl.errors import NumericsError, RequestError, python_words
from ddimctl.runtime.device import memory_errors

OnProgress = Callable[[int, int], None]
"""(done, total): how many of the steps are done."""

_FEWER = "Pass fewer images at once."


@python_words()
def trajectory(
    ckpt: Model,
    x_T: Tensor,
    *,
    timesteps: Sequence[int],
    eta: float = 0.0,
    variance: str = "eta",
    solver: str = "ddim",
    clip: str = "none",
    labels: Integers | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    seeds: Integers | None = None,
    noise: Noise | None = None,
) -> Iterator[Step]:
    """The steps from x_T (N, C, H, W) to the sample, one at a time: t, t_next, and (N, C, H, W) each
    x, where the step arrives, and x_0, what was predicted at t. The last step's x is the sample.

    timesteps: those to visit; x_T is at the largest.  eta: from 0 (DDIM) to 1 (DDPM).
    variance: of the added noise, "eta", "large" or "learned".  solver: "ddim", "ipndm" or "dpm++2m".
    clip: of the predicted x_0, "none", "static" or "dynamic".  labels: N classes, for checkpoints
    that have them.  guidance: the scale of classifier-free guidance; 1 is off.
    guidance_rescale: how far, from 0 to 1, a guided prediction gets the contrast of the unguided.
    seeds: N seeds, of the noise that steps add with eta > 0, as the command `sample` adds it.
    noise: instead of seeds, (t, x) -> standard normal noise like x.
    Raises RequestError for arguments that do not fit, DeviceError where memory runs out.
    """
    x = batch("x_T", x_T, ckpt)
    tau = visited(timesteps, ckpt)
    eta = real("eta", eta)
    check_variance(variance, eta, ckpt.learned_variance)
    check_solver(solver, eta, variance)
    denoise = make_denoiser(
        ckpt, real("guidance", guidance), clip, real("guidance_rescale", guidance_rescale)
    )
    function("noise", noise)
    if seeds is not None:
        noise = _seeded(seeds, len(x), noise)
    rows = classes(labels, x, ckpt)
    return _walk(
        sampling.trajectory(
            denoise,
            x,
            ckpt.schedule,
            tau,
            eta=eta,
            variance=variance,
            solver=solver,
            noise=noise,
            labels=rows,
        )
    )


def sample(
    ckpt: Model,
    x_T: Tensor,
    *,
    timesteps: Sequence[int],
    eta: float = 0.0,
    variance: str = "eta",
    solver: str = "ddim",
    clip: str = "none",
    labels: Integers | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    seeds: Integers | None = None,
    noise: Noise | None = None,
    progress: OnProgress | None = None,
) -> Tensor:
    """x_0 (N, C, H, W), nominally in [-1, 1], from x_T (N, C, H, W). Arguments as trajectory's.

    progress: called after each step with the numbers of steps done and in all.
    Raises as trajectory does; NumericsError where the result is not finite.
    """
    function("progress", progress)
    steps = trajectory(
        ckpt,
        x_T,
        timesteps=timesteps,
        eta=eta,
        variance=variance,
        solver=solver,
        clip=clip,
        labels=labels,
        guidance=guidance,
        guidance_rescale=guidance_rescale,
        seeds=seeds,
        noise=noise,
    )
    x, total = x_T, len(timesteps)
    for done, step in enumerate(steps, 1):
        x = step.x
        if progress is not None:
            progress(done, total)
    if not bool(x.isfinite().all()):
        raise NumericsError("the sample has values that are not finite.", "Use float32 weights.")
    return x


@python_words()
def invert(
    ckpt: Model,
    x_0: Tensor,
    *,
    timesteps: Sequence[int],
    method: str = "exact",
    tolerance: float = TOLERANCE,
    labels: Integers | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    progress: OnProgress | None = None,
) -> Inversion:
    """The latents from which `sample` with eta = 0 and the same timesteps, labels and guidance makes
    x_0.

    x_0: images (N, C, H, W), nominally in [-1, 1].  method: "exact", "fixed-point" or "naive".
    tolerance: of each step, above 0.  progress: called with how many of the N S steps are done, and
    N S.  Returns latents (N, C, H, W); residuals (N, S), the error of each step, NaN with naive;
    evaluations (N, S), of the network.
    Raises RequestError for arguments that do not fit, NumericsError where a latent is not finite.
    """
    x = batch("x_0", x_0, ckpt)
    tau = visited(timesteps, ckpt)
    check_inversion(ckpt, tau, method, real("tolerance", tolerance))
    function("progress", progress)
    on_step = None
    if progress is not None:
        tell, total = progress, len(x) * len(tau)
        on_step = lambda done: tell(done, total)  # noqa: E731
    rows = classes(labels, x, ckpt)
    denoise = make_denoiser(
        ckpt,
        real("guidance", guidance),
        guidance_rescale=real("guidance_rescale", guidance_rescale),
    )
    with torch.no_grad(), ieee_float32(), memory_errors(_FEWER):
        found = inversion.invert_steps(
            denoise,
            x,
            ckpt.schedule,
            tau,
            method=method,
            tolerance=tolerance,
            labels=rows,
            on_step=on_step,
        )
    if not bool(found.latents.isfinite().all()):
        raise NumericsError(
            "the latents have values that are not finite.", "Try method exact, or more steps."
        )
    return found._replace(latents=found.latents.float())


@python_words()
def search_timesteps(
    ckpt: Model,
    x_T: Tensor,
    *,
    steps: int,
    solver: str = "ddim",
    clip: str = "none",
    labels: Integers | None = None,
    guidance: float = 1.0,
    batch_size: int = 16,
) -> tuple[int, ...]:
    """The timesteps that the command's `--tau auto` would choose for this checkpoint and solver.

    x_T: (N, C, H, W), latents to choose with; 32 are enough, and each takes 120 evaluations,
    batch_size of them at a time. steps: how many timesteps, at most 50. The other arguments as
    sample's, to which the same should be given.
    Raises RequestError for arguments that do not fit, NumericsError where a prediction is not finite.
    """
    x = batch("x_T", x_T, ckpt)
    with memory_errors("Use a smaller batch_size."):
        return tau_search.search_timesteps(
            ckpt,
            x,
            steps=whole("steps", steps, 1),
            solver=solver,
            clip=clip,
            labels=classes(labels, x, ckpt),
            guidance=real("guidance", guidance),
            batch_size=whole("batch_size", batch_size, 1),
        )


def _seeded(seeds: Integers, count: int, noise: Noise | None) -> Noise:
    """The noise of each step by its image's seed."""
    if noise is not None:
        raise RequestError("seeds and noise both say which noise to add.", "Leave one out.")
    found = torch.tensor(integers("seeds", seeds, 0))
    if len(found) != count:
        raise RequestError(f"seeds are {len(found)}, the images {count}.", "Pass one for each.")
    return lambda t, x: seeded_noise(found, x.shape[1:], t, x.device)


def _walk(steps: Iterator[Step]) -> Iterator[Step]:
    """The steps, each made without gradients and in full float32; between them the caller's own
    settings hold."""
    while True:
        with python_words(), memory_errors(_FEWER), torch.no_grad(), ieee_float32():
            step = next(steps, None)
        if step is None:
            return
        yield step
