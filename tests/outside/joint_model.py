"""A model that the package does not know, made known by this one file: single stream, image first, half-paired rotations.

Its blocks are called with positional arguments and return one joint sequence; its attention has one fused projection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attnctrl.blocks import BlockForm, BlockPlace
from attnctrl.board import Board, Gates
from attnctrl.edge import Batched, Edge, walked
from attnctrl.host import Host, register_model
from attnctrl.layout import Arguments, Layout, Rotary, Site, groups_of
from attnctrl.phases import controlled_attention

HEADS, WIDTH = 2, 16


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x [B, S, H, D] by (cos, sin) [S, D / 2]: the first half of the channels pairs with the second."""
    if rotary is None:
        return x
    cos, sin = (table[:, None] for table in rotary)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class PlainProcessor:
    """The model's own attention."""

    def __call__(self, attn: Attention, x: Tensor, rotary: Rotary) -> Tensor:
        q, k, v = attn.projected(x)
        q, k, v = (one.transpose(1, 2) for one in (rotate(q, rotary), rotate(k, rotary), v))
        return attn.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """One joint attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, HEADS * WIDTH)
        self.processor: Any = PlainProcessor()

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.unflatten(-1, (HEADS, WIDTH)) for one in self.qkv(x).chunk(3, dim=-1))

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self.processor(self, x, rotary)


class Layer(nn.Module):
    """Attention and a little more on one joint sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.more = Attention(), nn.Linear(HEADS * WIDTH, HEADS * WIDTH)

    def forward(self, x: Tensor, rotary: Rotary, time: Tensor) -> Tensor:
        x = x + self.attention(x, rotary) * (1 + time)
        return x + torch.tanh(self.more(x))


class JointModel(nn.Module):
    """Latents [B, S_img, 4], text [B, S_text, 8], timestep [B], ids [S_img, 2] -> (velocity [B, S_img, 4],)."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.text = nn.Linear(4, HEADS * WIDTH), nn.Linear(8, HEADS * WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.refiner = Layer()  # has an attention that is no site
        self.last = nn.Linear(HEADS * WIDTH, 4)

    def table(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = 100.0 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
        angle = torch.cat([ids[:, :1] * frequencies, ids[:, 1:] * frequencies], dim=-1)
        return angle.cos(), angle.sin()

    def forward(self, latents: Tensor, text: Tensor, timestep: Tensor, ids: Tensor) -> tuple[Tensor]:
        image, words = self.embed(latents), self.refiner(self.text(text), None, timestep[:, None, None])
        cos, sin = self.table(torch.cat([ids, ids.new_zeros(words.shape[1], 2)]))
        x = torch.cat([image, words], dim=1)
        for layer in self.layers:
            x = layer(x, (cos, sin), timestep[:, None, None])
        return (self.last(x[:, : image.shape[1]]),)


class ControlledProcessor:
    """The same attention with the phases of a session's controls."""

    def __init__(self, stock: Any, board: Board, gates: Gates, site: Site) -> None:
        self.stock, self.board, self.gates, self.site = stock, board, gates, site

    def __call__(self, attn: Attention, x: Tensor, rotary: Rotary) -> Tensor:
        state = self.board.now()
        if state is None:
            return self.stock(attn, x, rotary)
        out = controlled_attention(
            *attn.projected(x),
            state=state,
            gates=self.gates,
            site=self.site,
            rotary=rotary,
            rotate=rotate,
            backend=None,
        )
        return attn.out(out.flatten(2))


class JointEdge(Edge):
    """What `JointModel` is."""

    name = "joint"
    transformer = JointModel
    batched = Batched(latents="latents", text="text", pooled=None, others=("timestep",), residuals=())
    embed, unembed = "embed", "last"

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        found = list(walked(transformer, {"layer": r"layers\.(\d+)\.attention"}))
        return tuple(Site(n, s, n, HEADS, a, groups_of(n, len(found), 2 * n >= len(found))) for s, n, a in found)

    def processor(self, site: Site, board: Board, gates: Gates) -> Any:
        return ControlledProcessor(site.module.processor, board, gates, site)

    def layout(self, transformer: Any, arguments: Arguments) -> Layout:
        ids = arguments["ids"]
        rows, columns = (ids.amax(0) - ids.amin(0) + 1).long().tolist()
        return Layout.of((("image", len(ids)), ("text", arguments["text"].shape[1])), (rows, columns))

    def blocks(self, transformer: Any) -> tuple[BlockPlace, ...]:
        form = BlockForm(image="x", text=None, returns="joint")
        return tuple(BlockPlace(transformer.layers, i, form) for i in range(len(transformer.layers)))

    def image_positions(self, arguments: Arguments) -> Tensor:
        return arguments["ids"]

    def table(self, transformer: Any, positions: Tensor) -> Rotary:
        return transformer.table(positions)

    def viewed(self, arguments: Arguments, layout: Layout, shown: Tensor) -> Arguments:
        return arguments  # the table is made of whole ids: views are not served by this model's forward


@register_model
class JointHost(Host):
    """A pipeline around it that makes passes in calls of their own."""

    edge: ClassVar[Edge] = JointEdge()
