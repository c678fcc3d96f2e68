"""The cache of attention in block mode: turned keys and values of the clean positions so far, rows of any length each.

Caches that follow one another share one room of memory. What a cache holds is what lies before its rows' lengths, and
that is written once: a block goes behind the lengths of the newest cache of a room, where no cache of the room looks.
An older cache that is added to gets a room of its own, and so does whatever autograd has to remember. Denoising writes
its noisy block to the same place, and whatever comes next writes over it, so that no step copies what is cached. The
room doubles when it is full: adding T positions one block after the other moves less than 2 T in all.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_lm.mixers.base import MixerCache
from diffusion_lm.shapes import Bool, Float, Int, Tensor

LEAST_ROOM = 64
"""Positions that the first room is made for."""


class Room:
    """Memory for keys and values [B, K, T, P]. newest: which of the caches in it may write behind its lengths.

    Heads come before positions: reading one head's keys is faster where they lie together. Room is made of zeros: what
    is no number would reach a query that must not see it, as 0 times itself.
    """

    def __init__(self, keys: Float[Tensor, "B K T P"], values: Float[Tensor, "B K T P"]) -> None:
        self.keys, self.values, self.newest = keys, values, 0

    def moved(self, used: int, end: int) -> "Room":
        """A room of its own with the first `used` positions of this one, and place for `end` or more."""
        spare = max(end, 2 * self.size() if end > self.size() else 0, LEAST_ROOM) - used
        return Room(_moved(self.keys, used, spare), _moved(self.values, used, spare))

    def size(self) -> int:
        """Positions that there is place for."""
        return self.keys.shape[2]

    def until(self, end: int) -> tuple[Float[Tensor, "B T K P"], Float[Tensor, "B T K P"]]:
        """The first keys and values, positions before heads as attention takes them; of the same memory."""
        return self.keys[:, :, :end].transpose(1, 2), self.values[:, :, :end].transpose(1, 2)

    def writable(self, k: Tensor) -> bool:
        """Whether autograd has nothing to remember of it, and torch lets it be changed."""
        frozen = self.keys.is_inference() and not torch.is_inference_mode_enabled()
        return not (frozen or k.requires_grad or self.keys.requires_grad)

    def write(
        self, k: Float[Tensor, "B S K P"], v: Float[Tensor, "B S K P"], place: Int[Tensor, "B S"] | slice
    ) -> None:
        """Put a block where it belongs, at the same positions in all rows or at each row's own."""
        if isinstance(place, slice):
            self.keys[:, :, place], self.values[:, :, place] = k.transpose(1, 2), v.transpose(1, 2)
        else:
            rows = torch.arange(len(k), device=k.device).unsqueeze(1)
            self.keys[rows, :, place], self.values[rows, :, place] = k, v


def _moved(values: Float[Tensor, "B K T P"], used: int, spare: int) -> Float[Tensor, "B K room P"]:
    return torch.nn.functional.pad(values[:, :, :used], (0, 0, 0, spare))


@dataclass(frozen=True, eq=False)
class KeyValueCache(MixerCache):
    """length: positions that each row has in it [B]; longest: the most of them; even: they are all the same.

    made: what a mixer has made of the lengths for the block that comes next, which is denoised many times.
    """

    room: Room
    length: Int[Tensor, "B"]
    longest: int
    even: bool
    version: int = 0
    made: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, room: Room, length: Int[Tensor, "B"], version: int = 0) -> "KeyValueCache":
        """That of rows of lengths that have to be looked at, which waits for the device once."""
        shortest, longest = torch.stack(torch.aminmax(length)).tolist()
        return cls(room, length, longest, shortest == longest, version)

    def place(self, size: int) -> Int[Tensor, "*B S"]:
        """Positions of a block that comes next, [S] where they are the same in all rows."""
        device = self.length.device
        if self.even:
            return torch.arange(self.longest, self.longest + size, device=device)
        return self.length.unsqueeze(1) + torch.arange(size, device=device)

    def beside(self, k: Float[Tensor, "B S K P"], v: Float[Tensor, "B S K P"]) -> Room:
        """A room with what is cached and, behind each row's length, a block. This cache's own wherever that may be."""
        room, end = self.room, self.longest + k.shape[1]
        if not (self.version == room.newest and room.writable(k)):
            room = Room(room.keys.to(k.dtype), room.values.to(v.dtype)).moved(self.longest, end)
        elif room.size() < end:
            wider = room.moved(self.longest, end)
            room.keys, room.values = wider.keys.to(k.dtype), wider.values.to(v.dtype)
        room.write(k, v, slice(self.longest, end) if self.even else self.place(k.shape[1]))
        return room

    def after(self, room: Room, size: int, rows: Bool[Tensor, "B"] | None) -> "KeyValueCache":
        """The cache with the block that `beside` has written into `room`, in the rows that are named (None: in all)."""
        room.newest += 1
        if rows is None:
            return KeyValueCache(room, self.length + size, self.longest + size, self.even, room.newest)
        return KeyValueCache.of(room, self.length + size * rows.long(), room.newest)

    def where(self, rows: Bool[Tensor, "B"], other: "KeyValueCache") -> "KeyValueCache":
        # no version of the room: behind its rows' lengths lies what this cache, of the same room, has still to see
        return KeyValueCache.of(self.room, torch.where(rows, self.length, other.length), -1)

    def repeated(self, times: int) -> "KeyValueCache":
        keys, values = (x[:, :, : self.longest].repeat(times, 1, 1, 1) for x in (self.room.keys, self.room.values))
        return KeyValueCache(Room(keys, values), self.length.repeat(times), self.longest, self.even)

    def nbytes(self) -> int:
        """Of the positions that are cached; the room behind them, at most as much again, is not counted."""
        each = (self.room.keys[0, :, :1].nbytes + self.room.values[0, :, :1].nbytes) if self.longest else 0
        return each * int(self.length.sum())
