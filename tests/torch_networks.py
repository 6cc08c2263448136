"""MobileNet V1, V2 and Inception-V3 with PyTorch's own modules, for tests and benchmarks.

The modules stand in the order in which our networks declare their weights. `settings` of the
MobileNets are (ε, momentum, whether padding is TensorFlow's "same").
"""

import torch
from torch import nn
from torch.nn import functional

from minires.networks.inception import VARIANTS as INCEPTION
from minires.networks.mobilenet import V1, V2, round_channels


class Pad(nn.Module):
    """TensorFlow's "same": the odd pixel at the end."""

    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x):
        total = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0)
                 for n in x.shape[2:]]  # fmt: skip
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
        return functional.pad(x, (left, right, top, bottom))


def mobile_step(before, after, kernel, stride, groups, settings, activation=True):
    epsilon, momentum, same = settings
    layers = [Pad(kernel, stride)] if same else []
    padding = 0 if same else kernel // 2
    layers += [
        nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=epsilon, momentum=1 - momentum),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if activation else layers


class Sum(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.inner(x)


def torch_mobilenet_v1(width, channels, classes, first_stride, settings):
    now = max(8, int(32 * width))
    layers = mobile_step(channels, now, 3, first_stride, 1, settings)
    for wanted, stride in V1:
        after = max(8, int(wanted * width))
        layers += mobile_step(now, now, 3, stride, now, settings)
        layers += mobile_step(now, after, 1, 1, 1, settings)
        now = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, classes))


def torch_mobilenet_v2(width, channels, classes, first_stride, settings):
    now = round_channels(32 * width)
    layers = mobile_step(channels, now, 3, first_stride, 1, settings)
    for expansion, wanted, blocks, first in V2:
        after = round_channels(wanted * width)
        for number in range(blocks):
            stride = first if number == 0 else 1
            wide = expansion * now
            block = mobile_step(now, wide, 1, 1, 1, settings) if expansion > 1 else []
            block += mobile_step(wide, wide, 3, stride, wide, settings)
            block += mobile_step(wide, after, 1, 1, 1, settings, activation=False)
            layers.append(Sum(*block) if stride == 1 and now == after else nn.Sequential(*block))
            now = after
    last = round_channels(1280 * max(1.0, width))
    layers += mobile_step(now, last, 1, 1, 1, settings)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))


class Join(nn.Module):
    def __init__(self, *ways):
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x):
        return torch.cat([way(x) for way in self.ways], dim=1)


class TorchInception(nn.Module):
    def __init__(self, width, channels, classes, variant, auxiliary):
        super().__init__()
        self.width, self.variant = width, variant
        self.settings = INCEPTION[variant]
        now, layers = channels, []
        for step in [(32, 3, 2, 0), (32, 3, 1, 0), (64, 3, 1, 1), "pool", (80, 1, 1, 0),
                     (192, 3, 1, 0), "pool"]:  # fmt: skip
            now = self.append(layers, now, step)
        for pooled in (32, 64, 64):
            now = self.join(layers, now, [
                [(64, 1, 1, 0)],
                [(48, 1, 1, 0), (64, 5, 1, 2)],
                [(64, 1, 1, 0), (96, 3, 1, 1), (96, 3, 1, 1)],
                ["mean", (pooled, 1, 1, 0)],
            ])  # fmt: skip
        now = self.join(layers, now, [
            [(384, 3, 2, 0)], [(64, 1, 1, 0), (96, 3, 1, 1), (96, 3, 2, 0)], ["pool"],
        ])  # fmt: skip
        across, down = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        for n in (128, 160, 160, 192):
            now = self.join(layers, now, [
                [(192, 1, 1, 0)],
                [(n, 1, 1, 0), (n, *across), (192, *down)],
                [(n, 1, 1, 0), (n, *down), (n, *across), (n, *down), (192, *across)],
                ["mean", (192, 1, 1, 0)],
            ])  # fmt: skip
        self.below = nn.Sequential(*layers)
        self.head = None
        if auxiliary:
            head = [nn.AvgPool2d(5, 3)]
            last = self.append(head, now, (128, 1, 1, 0))
            last = self.append(head, last, (768, 5, 1, 0))
            head += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
            self.head = nn.Sequential(*head)
        layers = []
        now = self.join(layers, now, [
            [(192, 1, 1, 0), (320, 3, 2, 0)],
            [(192, 1, 1, 0), (192, *across), (192, *down), (192, 3, 2, 0)],
            ["pool"],
        ])  # fmt: skip
        cross = [[((1, 3), (0, 1))], [((3, 1), (1, 0))]]
        for _ in range(2):
            now = self.join(layers, now, [
                [(320, 1, 1, 0)], [(384, 1, 1, 0), cross],
                [(448, 1, 1, 0), (384, 3, 1, 1), cross], ["mean", (192, 1, 1, 0)],
            ])  # fmt: skip
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, classes)]
        self.above = nn.Sequential(*layers)

    def append(self, layers, now, step):
        if step == "pool":
            layers.append(nn.MaxPool2d(3, 2))
        elif step == "mean":
            layers.append(nn.AvgPool2d(3, 1, 1, count_include_pad=self.variant == "torch"))
        elif isinstance(step, list):
            ways = [[(384, kernel, 1, padding)] for [(kernel, padding)] in step]
            return self.join(layers, now, ways)
        else:
            wanted, kernel, stride, padding = step
            after = max(8, int(wanted * self.width))
            norm = nn.BatchNorm2d(after, eps=1e-3, momentum=1 - self.settings["momentum"])
            if not self.settings["scale"]:
                norm.weight.requires_grad_(False)
            conv = nn.Conv2d(now, after, kernel, stride, padding, bias=False)
            layers += [conv, norm, nn.ReLU(inplace=True)]
            return after
        return now

    def join(self, layers, now, ways):
        branches, total = [], 0
        for way in ways:
            parts, after = [], now
            for step in way:
                after = self.append(parts, after, step)
            branches.append(nn.Sequential(*parts))
            total += after
        layers.append(Join(*branches))
        return total

    def forward(self, x):
        x = self.below(x)
        head = self.head(x) if self.head is not None and self.training else None
        return self.above(x), head
