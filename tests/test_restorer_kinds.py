"""The Restorer's pictures: arrays, tensors and PIL images of every kind, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.album import cutout, exif, photo
from helpers.networks import Nearest, blur, picture, spec
from PIL import ExifTags, Image
from torch import Tensor

from mambair_cli.errors import BadImage, UsageError
from mambair_cli.restoring.restorer import Restorer, luma


def test_grey_through_a_colour_network_and_colour_through_a_grey_one() -> None:
    grey, colour = picture(6, 5, 1), picture(6, 5) * 0.5 + 0.25
    torch.testing.assert_close(Restorer(spec(2), Nearest(2)).restore(grey)[:, ::2, ::2], grey)

    class Darker(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 0.1

    restorer = Restorer(spec(channels=1), network := Darker())
    result = restorer.restore(colour)
    assert network.seen == [(1, 1, 6, 5)]
    torch.testing.assert_close(luma(result), luma(colour) - 0.1)
    for channel in (0, 2):  # Cb and Cr are differences to the luma
        torch.testing.assert_close(result[channel] - luma(result)[0], colour[channel] - luma(colour)[0])


def test_colour_through_a_grey_network_that_enlarges() -> None:
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 6, 5)
    result = Restorer(spec(2, channels=1), Nearest(2)).restore(flat)
    torch.testing.assert_close(result, flat[:, :1, :1].expand(3, 12, 10))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_arrays_come_back_as_they_went_in(dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape)
    peak = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    image = (values * peak).astype(dtype)
    result = Restorer(spec(2), Nearest(2))(image)
    assert (result.dtype, result.shape) == (dtype, (12, 10, *shape[2:]))
    np.testing.assert_allclose(result[::2, ::2], image, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, channels), np.uint8) for channels in (2, 4)] + [np.zeros((4, 4), np.int32), np.zeros((0, 4))],
)
def test_arrays_that_are_not_pictures_are_refused(image: np.ndarray) -> None:
    with pytest.raises(BadImage):
        Restorer(spec(), Nearest())(image)


@pytest.mark.parametrize(
    ("mode", "comes_back_as"),
    [(mode, mode) for mode in ("L", "I;16", "I;16B", "RGB", "LA", "RGBA")]
    + [("1", "L"), ("P", "RGB"), ("CMYK", "RGB")],
)
def test_pil_images_of_every_mode(mode: str, comes_back_as: str) -> None:
    if mode.startswith("I;16"):
        image = Image.fromarray((np.arange(30).reshape(6, 5) * 2000).astype(">u2" if mode == "I;16B" else "<u2"))
    else:
        image = Image.linear_gradient("L").resize((5, 6)).convert("RGB").convert(mode)
    result = Restorer(spec(2), Nearest(2))(image)
    assert (result.mode, result.size) == (comes_back_as, (10, 12))
    colours = slice(0, -1 if "A" in mode else None)
    expected = np.atleast_3d(np.asarray(image if mode == comes_back_as else image.convert(comes_back_as)))[
        ..., colours
    ]
    assert np.array_equal(np.atleast_3d(np.asarray(result))[::2, ::2, colours], expected)


def test_pil_alpha_is_enlarged_beside_the_colours() -> None:
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 255))
    image.putalpha(Image.linear_gradient("L").resize((8, 8)))
    result = Restorer(spec(2), Nearest(2))(image)
    assert np.array_equal(np.asarray(result)[..., 0], np.full((16, 16), 200))
    expected = image.getchannel("A").resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(result.getchannel("A")), np.asarray(expected))


def test_what_hides_under_pil_transparency_does_not_darken_the_edges() -> None:
    """Colour under alpha 0 is black, as most programs leave it; a network that blurs must not see it."""
    image = cutout()
    whole = np.asarray(Restorer(spec(), blur())(photo())).astype(int)
    result = np.asarray(Restorer(spec(), blur())(image)).astype(int)
    alpha = np.asarray(image)[..., 3]
    rim = (alpha > 0) & (alpha < 255)
    assert (result[..., :3] - whole)[rim].mean() > -10  # about -40 with the black


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_what_a_pil_image_carries_goes_along(mode: str) -> None:
    data = {"dpi": (300, 300), "exif": exif().tobytes(), "icc_profile": b"profile", "Title": "Wall"}
    image = photo().convert(mode)
    image.info = data | {"compression": "group4"} | ({"transparency": 3} if mode in ("L", "P") else {})
    result = Restorer(spec(2), Nearest(2))(image)
    assert result.info == data
    assert result.getexif()[ExifTags.Base.Make] == "Maker"
    assert result.mode == {"L": "LA", "P": "RGBA"}.get(mode, mode)
    assert image.info.keys() > data.keys()  # the original is as it was


@pytest.mark.parametrize(
    ("image", "mode"), [(photo("CMYK"), "RGB"), (photo("L").convert("P"), "L")], ids=["CMYK", "grey palette"]
)
def test_a_profile_of_other_channels_is_not_kept(image: Image.Image, mode: str) -> None:
    image.info = {"icc_profile": b"of others", "dpi": (72, 72)}
    result = Restorer(spec(), Nearest())(image)
    assert (result.mode, result.info) == (mode, {"dpi": (72, 72)})


@pytest.mark.parametrize("values", [[0.0, 255.0], [-1.0, 1.0], [0.0, np.nan], [0.0, 1.5]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_another_range_are_refused(values: list[float], dtype: type) -> None:
    with pytest.raises(BadImage, match="networks know 0 to 1"):
        Restorer(spec(), Nearest())(np.array([values], dtype))


def test_floats_that_resampling_has_pushed_over_the_edge_are_taken() -> None:
    result = Restorer(spec(), Nearest())(np.array([[-0.005, 1.005]]))
    assert result.tolist() == [[0.0, 1.0]]


def test_sixteen_bits_are_not_squeezed_for_their_transparency() -> None:
    image = Image.fromarray(np.full((4, 4), 3000, np.uint16))
    image.info["transparency"] = 3000
    with pytest.raises(BadImage, match="transparent level"):
        Restorer(spec(), Nearest())(image)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_modes_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(BadImage):
        Restorer(spec(), Nearest())(Image.new(mode, (4, 4)))


def test_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="str"):
        Restorer(spec(), Nearest())("photo.png")  # type: ignore[type-var]
    for shape in [(4, 4), (2, 4, 4), (3, 0, 4)]:
        with pytest.raises(BadImage):
            Restorer(spec(), Nearest()).restore(torch.zeros(shape))
