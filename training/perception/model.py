"""The network: 49 tiles, three mixer blocks, a short summary; heads on the summary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.minigrid import tiles
from training.perception.tasks import COARSE_CLASSES


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Widths; 151 k parameters as they stand."""

    width: int = 64  # of a tile's features
    tokens_hidden: int = 64  # in the half of a block that mixes tiles
    features_hidden: int = 128  # in the half that mixes features
    blocks: int = 3
    slots: int = 8  # mixtures of tiles that the summary is read from
    summary: int = 128


class TokensHalf(nn.Module):
    """Mixes tiles, feature by feature: [n, 49, width] -> the same, added."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.inner = nn.Linear(tiles.CELL_COUNT, config.tokens_hidden)
        self.outer = nn.Linear(config.tokens_hidden, tiles.CELL_COUNT)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.outer(torch.relu(self.inner(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return x + mixed


class FeaturesHalf(nn.Module):
    """Mixes features, tile by tile: [n, 49, width] -> the same, added."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.inner = nn.Linear(config.width, config.features_hidden)
        self.outer = nn.Linear(config.features_hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.outer(torch.relu(self.inner(self.norm(x))))
        return x + mixed


class Embed(nn.Module):
    """uint8 images [n, 56, 56, 3] -> tiles [n, 49, width]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * tiles.TILE_PX**2, config.width)
        self.place = nn.Parameter(0.1 * torch.randn(tiles.CELL_COUNT, config.width))

    def forward(self, images: Tensor) -> Tensor:
        side, px = tiles.VIEW_CELLS, tiles.TILE_PX
        pixels = images.float() / 127.5 - 1
        cells = pixels.reshape(-1, side, px, side, px, 3).permute(0, 1, 3, 2, 4, 5)
        embedded: Tensor = self.patch(cells.reshape(-1, tiles.CELL_COUNT, 3 * px**2))
        return embedded + self.place


class Summary(nn.Module):
    """[n, 49, width] -> [n, summary]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.slots = nn.Linear(tiles.CELL_COUNT, config.slots)
        self.out = nn.Linear(config.slots * config.width, config.summary)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(self.slots(self.norm(x).transpose(1, 2)).flatten(1)))


class Backbone(nn.Module):
    """Images to summaries: what task vectors move. Its children, in order, are the layers of a merge."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.embed = Embed(config)
        for index in range(config.blocks):
            self.add_module(f"tokens{index}", TokensHalf(config))
            self.add_module(f"features{index}", FeaturesHalf(config))
        self.summary = Summary(config)

    def tiles(self, images: Tensor) -> Tensor:
        """Features of each tile, [n, 49, width]."""
        x = images
        for name, layer in self.named_children():
            if name != "summary":
                x = layer(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        known: Tensor = self.summary(self.tiles(images))
        return known

    def layers(self) -> dict[str, list[str]]:
        """Names of the parameters by layer, in order of depth."""
        return {
            layer: [f"{layer}.{name}" for name, _ in module.named_parameters()]
            for layer, module in self.named_children()
        }


class CoarseReader(nn.Module):
    """The base's lesson: the coarse map once from each tile's features, once from the summary alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.by_tile = nn.Linear(config.width, len(COARSE_CLASSES))
        self.by_summary = nn.Linear(config.summary, tiles.CELL_COUNT * len(COARSE_CLASSES))

    def loss(self, backbone: Backbone, images: Tensor, coarse: Tensor) -> Tensor:
        """Mean cross-entropy; `coarse` int64 [n, 49]."""
        cells = backbone.tiles(images)
        seen = self.by_tile(self.norm(cells)).flatten(0, 1)
        told = self.by_summary(backbone.summary(cells)).reshape(-1, len(COARSE_CLASSES))
        target = coarse.flatten()
        return nn.functional.cross_entropy(seen, target) + nn.functional.cross_entropy(told, target)
