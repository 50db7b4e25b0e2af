"""Denoising Diffusion Implicit Models (Song, Meng, Ermon 2021) from the terminal and from Python."""
