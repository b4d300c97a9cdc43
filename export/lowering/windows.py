"""Sliding windows of convolutions and poolings: `unfold` cuts an image into them, `fold` adds them up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from export.lowering.call import Call

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Windows over the rows and columns of [B, H, W, C]; each pair is (along rows, along columns).

    Attributes:
        size: of the image, H and W.
        kernel: of a window.
        stride, dilation: between windows, and between the elements of one.
        before, after: how many elements the image is padded with.
    """

    size: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair

    @classmethod
    def of(cls, call: Call, size: Pair, kernel: Pair) -> Windows:
        """From an operator's attributes ``strides``, ``dilations`` and ``padding``."""
        if call.attr("data_format") not in (b"NHWC", "NHWC"):
            call.refuse("channels first", "use data_format='channels_last'")
        stride = _pair(call.attr("strides"))
        dilation = _pair(call.attr("dilations")) if "dilations" in call.op.node_def.attr else (1, 1)
        padding = call.attr("padding")
        before, after = (0, 0), (0, 0)
        if padding == b"SAME":
            needed = [
                max((-(-size[a] // stride[a]) - 1) * stride[a] + (kernel[a] - 1) * dilation[a] + 1 - size[a], 0)
                for a in (0, 1)
            ]
            before = (needed[0] // 2, needed[1] // 2)
            after = (needed[0] - before[0], needed[1] - before[1])
        elif padding == b"EXPLICIT":
            edges = call.attr("explicit_paddings")
            before, after = (edges[2], edges[4]), (edges[3], edges[5])
        return cls(size, kernel, stride, dilation, before, after)

    @property
    def count(self) -> Pair:
        """Number of windows along rows and along columns."""
        rows, columns = (
            (self.padded[a] - (self.kernel[a] - 1) * self.dilation[a] - 1) // self.stride[a] + 1 for a in (0, 1)
        )
        return rows, columns

    @property
    def padded(self) -> Pair:
        rows, columns = (self.size[a] + self.before[a] + self.after[a] for a in (0, 1))
        return rows, columns

    @property
    def tiled(self) -> bool:
        """Whether the windows lie side by side and cover the image."""
        return (
            self.stride == self.kernel
            and self.dilation == (1, 1)
            and self.padded == self.size == tuple(self.count[a] * self.kernel[a] for a in (0, 1))
        )

    def across(self) -> Windows:
        """The windows' part along columns: one element high, in every row."""
        return replace(
            self,
            kernel=(1, self.kernel[1]),
            stride=(1, self.stride[1]),
            dilation=(1, self.dilation[1]),
            before=(0, self.before[1]),
            after=(0, self.after[1]),
        )

    def down(self) -> Windows:
        """Their part along rows: one element wide, in every column of what `across` leaves."""
        return replace(
            self,
            size=(self.size[0], self.count[1]),
            kernel=(self.kernel[0], 1),
            stride=(self.stride[0], 1),
            dilation=(self.dilation[0], 1),
            before=(self.before[0], 0),
            after=(self.after[0], 0),
        )

    def pad(self, x: tf.Tensor, value: float = 0.0) -> tf.Tensor:
        """x [B, H, W, C] with its edges."""
        if self.padded == self.size:
            return x
        edges = [(0, 0), *zip(self.before, self.after, strict=True), (0, 0)]
        return tf.pad(x, edges, constant_values=value)

    def unfold(self, x: tf.Tensor, value: float = 0.0) -> list[list[tf.Tensor]]:
        """For each row i and column j of a window, the elements of x [B, H, W, C] there, [B, rows, columns, C]."""
        rows, columns = self.count
        if self.tiled:
            channels = x.shape[-1]
            by_row = tf.split(
                tf.reshape(x, [-1, self.kernel[0], columns, self.kernel[1] * channels]), self.kernel[0], axis=1
            )
            return [
                [tf.reshape(part, [-1, rows, columns, channels]) for part in tf.split(row, self.kernel[1], axis=3)]
                for row in by_row
            ]
        x = self.pad(x, value)
        return [
            [x[:, self.span(0, i, rows), self.span(1, j, columns), :] for j in range(self.kernel[1])]
            for i in range(self.kernel[0])
        ]

    def span(self, axis: int, offset: int, count: int) -> slice:
        """Where element `offset` of each of `count` windows stands along rows (axis 0) or columns (1)."""
        start = offset * self.dilation[axis]
        return slice(start, start + self.stride[axis] * (count - 1) + 1, self.stride[axis])

    def unfold_columns(self, x: tf.Tensor) -> list[tf.Tensor]:
        """For each column j of a window, the elements of x [B, H, W, C] there, in all rows: [B, H, columns, C]."""
        edges = [(0, 0), (0, 0), (self.before[1], self.after[1]), (0, 0)]
        x = tf.pad(x, edges) if any(edges[2]) else x
        return [x[:, :, self.span(1, j, self.count[1]), :] for j in range(self.kernel[1])]

    def to_subtract(self, matrix: tf.Tensor, axis: int) -> tf.Tensor:
        """A matrix [m, kernel · n] whose parts along rows (axis 0) or columns (1) are to be added up, made ready.

        All parts are negated but for those that nothing comes before, so that their sum is made by subtraction:
        tflite-runtime adds in place where it can, and takes four times as long for that as to subtract.
        """
        if self.kernel[axis] <= self.stride[axis]:
            return matrix
        phases = [k * self.dilation[axis] % self.stride[axis] for k in range(self.kernel[axis])]
        signs = [-1.0 if phase in phases[:k] else 1.0 for k, phase in enumerate(phases)]
        return matrix * tf.constant(np.repeat(signs, int(matrix.shape[1]) // len(signs)), tf.float32)

    def fold_columns(self, parts: list[tf.Tensor]) -> tf.Tensor:
        """The adjoint of `unfold_columns`, of parts from a matrix `to_subtract`."""
        return self._fold_axis(parts, 1, tf.subtract)

    def gather_rows(self, parts: list[tf.Tensor]) -> tf.Tensor:
        """The sum over i of part i [B, H, columns, C], moved so that row r of the result is its row r + i − before.

        With strides of 1, of parts from a matrix `to_subtract`; rows beyond the edge count as zero.
        """
        count, size = self.count[0], self.size[0]
        reach = (self.kernel[0] - 1) * self.dilation[0]
        total: Any = None
        for i, part in enumerate(parts):  # row r of part i goes to row r + reach − i · dilation
            start = reach - i * self.dilation[0]
            placed = tf.pad(part, [(0, 0), (start, reach - start), (0, 0), (0, 0)]) if reach else part
            total = placed if total is None else total - placed
        start = reach - self.before[0]
        return total if count == size + reach else total[:, start : start + count]

    def scatter_rows(self, dy: tf.Tensor) -> list[tf.Tensor]:
        """The adjoint of `gather_rows`: for each i, [B, H, columns, C]."""
        count, size = self.count[0], self.size[0]
        reach = (self.kernel[0] - 1) * self.dilation[0]
        start = reach - self.before[0]
        padded = tf.pad(dy, [(0, 0), (start, size + reach - start - count), (0, 0), (0, 0)]) if reach else dy
        starts = [reach - i * self.dilation[0] for i in range(self.kernel[0])]
        return [padded[:, first : first + size] if reach else padded for first in starts]

    def fold(self, rows: list[tf.Tensor]) -> tf.Tensor:
        """The adjoint of `unfold`: add every window's elements where they came from.

        Args:
            rows: for each row i of a window, [B, rows, columns, columns of a window · C].

        Returns:
            [B, H, W, C].
        """
        if self.tiled:
            lines = [tf.reshape(row, [-1, 1, self.size[1] * int(row.shape[3]) // self.kernel[1]]) for row in rows]
            return tf.reshape(
                tf.concat(lines, axis=1) if len(lines) > 1 else lines[0],
                [-1, *self.size, int(rows[0].shape[3]) // self.kernel[1]],
            )
        by_column = self._fold_axis(rows, 0)
        return self._fold_axis(tf.split(by_column, self.kernel[1], axis=3), 1)

    def _fold_axis(
        self, pieces: list[tf.Tensor], which: int, join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.add
    ) -> tf.Tensor:
        """Piece k, whose elements are `stride` apart, belongs at k · dilation: join them, phase by phase."""
        axis, stride, dilation = 1 + which, self.stride[which], self.dilation[which]
        length, count = self.padded[which], self.count[which]
        steps = -(-length // stride)
        phases: list[tf.Tensor | None] = [None] * stride
        for k, piece in enumerate(pieces):
            start, phase = divmod(k * dilation, stride)
            edges = [(0, 0)] * 4
            edges[axis] = (start, steps - start - count)
            placed = tf.pad(piece, edges) if steps != count else piece
            so_far = phases[phase]
            phases[phase] = placed if so_far is None else join(so_far, placed)
        present = next(phase for phase in phases if phase is not None)
        filled = [tf.zeros_like(present) if phase is None else phase for phase in phases]
        whole = filled[0] if stride == 1 else _interleave(filled, axis, steps)
        before, size = self.before[which], self.size[which]
        if steps * stride == size:
            return whole
        cut = [slice(None)] * 4
        cut[axis] = slice(before, before + size)
        return whole[tuple(cut)]


def _interleave(phases: list[tf.Tensor], axis: int, steps: int) -> tf.Tensor:
    """Elements of the phases by turns along rows (axis 1) or columns (axis 2) of [B, h, w, C]."""
    _, height, width, channels = phases[0].shape
    stride = len(phases)
    if axis == 2:
        return tf.reshape(tf.concat(phases, axis=3), [-1, height, steps * stride, channels])
    flat = [tf.reshape(phase, [-1, 1, width * channels]) for phase in phases]
    return tf.reshape(tf.concat(flat, axis=1), [-1, steps * stride, width, channels])


def _pair(values: list[int]) -> Pair:
    return int(values[1]), int(values[2])
