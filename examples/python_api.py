"""Eight peeps from the bundled checkpoint with 5, 10, 20 and 50 steps: same noise, same peep."""

from pathlib import Path

import torch

import ddimctl

checkpoint = ddimctl.load_checkpoint()
x_T = ddimctl.seeded_noise(range(8), checkpoint.sample_shape)
labels = torch.full((8,), checkpoint.class_names.index("peep"))

rows = []
for steps in (5, 10, 20, 50):
    tau = ddimctl.timesteps("linspace", steps, checkpoint.schedule.num_train_timesteps)
    rows.append(ddimctl.sample(checkpoint, x_T, timesteps=tau, labels=labels))

ddimctl.make_grid(torch.cat(rows), columns=8).save("steps.png")
print(Path("steps.png").resolve())
