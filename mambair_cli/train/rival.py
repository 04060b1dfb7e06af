"""The second stage: a discriminator that learns to tell results from truths, and what the network learns from it.

As in ESRGAN (Wang et al., 2018) and Real-ESRGAN (Wang et al., 2021): a U-Net with spectral normalisation judges every
place of the picture. Here it is small, judges at half the resolution, and also sees the bicubic enlargement of the
input, so that it can object to detail that the input does not support. Hinge loss (Lim and Ye, 2017) and feature
matching (Wang et al., pix2pixHD, CVPR 2018). It does not mind a faint grid, the eye does: that has a term of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mambair_cli.train.processes import ALONE, Processes
from mambair_cli.train.recipe import Adversarial

Features = list[Tensor]  # what the layers see, the verdict last


class Discriminator(nn.Module):
    """(B, 3, H, W) results or truths and the enlarged inputs, H and W multiples of 4 -> features and the verdict.

    The verdict is (B, 1, H/2, W/2): above 0 where the picture looks like a truth.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, 1))

        self.first = layer(6, width, 3)
        self.halved = layer(width, 2 * width, 4, 2)
        self.quartered = layer(2 * width, 3 * width, 4, 2)
        self.deep = layer(3 * width, 3 * width, 3)
        self.narrow = layer(3 * width, 2 * width, 3)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, picture: Tensor, enlarged: Tensor) -> Features:
        both = torch.cat([picture, enlarged], dim=1).contiguous(memory_format=torch.channels_last)
        full = F.leaky_relu(self.first(both), 0.2)
        half = F.leaky_relu(self.halved(full), 0.2)
        quarter = F.leaky_relu(self.quartered(half), 0.2)
        deep = F.leaky_relu(self.deep(quarter), 0.2)
        up = F.interpolate(F.leaky_relu(self.narrow(deep), 0.2), scale_factor=2, mode="bilinear", align_corners=False)
        return [full, half, quarter, deep, self.last(up + half)]


@dataclass
class Rival:
    """A discriminator, its optimiser and its part in the loss."""

    table: Adversarial
    network: Discriminator
    optimizer: torch.optim.Optimizer

    @classmethod
    def fresh(cls, table: Adversarial, device: torch.device) -> Rival:
        network = Discriminator(table.width).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(table, network, torch.optim.Adam(network.parameters(), table.rate, (0.0, 0.99)))

    def learn(
        self, result: Tensor, truth: Tensor, enlarged: Tensor, share: float, processes: Processes = ALONE
    ) -> Features:
        """One step of the discriminator at `share` of its rate; returns what it saw in the truths before."""
        real, fake = self.network(truth, enlarged), self.network(result.detach(), enlarged)
        loss = F.relu(1 - real[-1]).mean() + F.relu(1 + fake[-1]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        processes.average(parameter.grad for parameter in self.network.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = self.table.rate * share
        self.optimizer.step()
        return [feature.detach() for feature in real]

    def objection(self, result: Tensor, truth: Tensor, enlarged: Tensor, scale: int, real: Features) -> Tensor:
        """A term for the network's loss whose gradient is what the discriminator wants changed in the result.

        Verdict and feature matching each push with a fixed share of the size that the gradient of L1 has, so that the
        balance stays what the recipe says while the discriminator grows stronger (as the adaptive weight of Esser et
        al., "Taming Transformers", CVPR 2021, does); against a grid it pushes the harder, the more of it there is.
        """
        picture = result.detach().requires_grad_()
        *seen, verdict = self.network(picture, enlarged)
        matching = torch.stack([F.l1_loss(ours, theirs) for ours, theirs in zip(seen, real, strict=False)]).mean()
        (better,) = torch.autograd.grad(-verdict.mean(), picture, retain_graph=True)
        (closer,) = torch.autograd.grad(matching, picture)
        size = picture.numel() ** -0.5  # of the gradient of L1, whatever the errors are
        push = self.table.weight * F.normalize(better.flatten(), dim=0)
        push = push + self.table.features * F.normalize(closer.flatten(), dim=0)
        if self.table.grid and (excess := grid_excess(picture, truth, scale)) > 0:
            (smoother,) = torch.autograd.grad(excess, picture)
            push = push + self.table.grid * excess.detach() * F.normalize(smoother.flatten(), dim=0)
        return size * (result.flatten() * push).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])


def grid_excess(result: Tensor, truth: Tensor, scale: int) -> Tensor:
    """How far the energy at the periods of an upsampler (the scale, its half, ...) stands out, in nats.

    Both (B, C, H, W). Energy is that of the rows and columns of the mean channel, in proportion to the frequencies
    beside; what stands out in the truth as much may. 0 where nothing does.
    """
    excess = [
        F.relu(stands_out(result.transpose(*axes), period) - F.relu(stands_out(truth.transpose(*axes), period)))
        for axes in ((2, 2), (2, 3))
        for period in (2**power for power in range(1, scale.bit_length()))
        if scale % period == 0
    ]
    return torch.stack(excess).sum() if excess else result.new_zeros(())


def stands_out(picture: Tensor, period: int) -> Tensor:
    """The logarithm of the energy of rows at a period of some pixels, over that of lower frequencies beside."""
    length = picture.shape[3] // 8 * 8
    lines = picture[..., :length].mean(dim=1) * torch.hann_window(length, device=picture.device)
    power = torch.fft.rfft(lines).abs().square().mean(dim=(0, 1)) + 1e-9
    at, near = length // period, max(1, length // 80)
    return power[at - near + 1 : at + near].mean().log() - power[max(1, at - 6 * near) : at - 2 * near].log().mean()


def enlarge(lq: Tensor, truth: Tensor) -> Tensor:
    """The input at the size of the truth, bicubic; as it is where they have the same size."""
    if lq.shape[2:] == truth.shape[2:]:
        return lq
    return F.interpolate(lq, truth.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)
