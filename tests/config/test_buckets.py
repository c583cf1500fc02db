"""Shapes of training images, and which one a concept gets."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.config.buckets import SDXL_SHAPES, choose, shapes

sides = st.integers(1, 5000)


def test_the_shapes_of_sdxl() -> None:
    """Podell et al. 2023, appendix I: 40 of them, sides of multiples of 64, about as many pixels as 1024 x 1024."""
    assert shapes(1024, 8) == SDXL_SHAPES
    assert len(SDXL_SHAPES) == 40
    assert {side % 64 for shape in SDXL_SHAPES for side in shape} == {0}
    assert all(0.89 <= height * width / 1024**2 <= 1.01 for height, width in SDXL_SHAPES)
    assert sorted(h / w for h, w in SDXL_SHAPES) == [h / w for h, w in SDXL_SHAPES]
    assert (SDXL_SHAPES[0], SDXL_SHAPES[-1]) == ((512, 2048), (2048, 512))


@given(multiple=st.sampled_from([8, 16, 32]), steps=st.integers(1, 128))
def test_scaled_shapes(multiple: int, steps: int) -> None:
    side = multiple * steps
    found = shapes(side, multiple)
    assert (side, side) in found
    assert len(set(found)) == len(found)
    assert all(length % multiple == 0 and length > 0 for shape in found for length in shape)
    for height, width in found:  # no side is off by more than half a multiple
        assert any(
            abs(height - h * side / 1024) <= max(multiple / 2, multiple - h * side / 1024)
            and abs(width - w * side / 1024) <= max(multiple / 2, multiple - w * side / 1024)
            for h, w in SDXL_SHAPES
        )


@given(size=st.tuples(sides, sides), count=st.integers(1, 5), side=st.sampled_from([64, 512, 768, 1024]))
def test_no_other_shape_is_nearer(size: tuple[int, int], count: int, side: int) -> None:
    among = shapes(side, 8)
    height, width = choose([size] * count, among)
    ratio = math.log(size[1] / size[0])
    assert all(
        abs(math.log(height / width) - ratio) <= abs(math.log(h / w) - ratio) + 1e-12 for h, w in among
    )


@given(most=st.tuples(sides, sides), others=st.lists(st.tuples(sides, sides), max_size=2))
def test_the_majority_decides(most: tuple[int, int], others: list[tuple[int, int]]) -> None:
    among = shapes(512, 8)
    assert choose([most] * 3 + others, among) == choose([most], among)


@given(sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=6), order=st.randoms())
def test_the_order_of_images_does_not_matter(sizes: list[tuple[int, int]], order: object) -> None:
    shuffled = list(sizes)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled, shapes(512, 8)) == choose(sizes, shapes(512, 8))
