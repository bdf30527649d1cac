"""Pictures as users have them: every mode, orientation and transparency."""

from __future__ import annotations

import pytest
from PIL import Image

from attnctrl import ControlError
from attnctrl.pictures import data_uri, fit_picture, read_picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "I"])
def test_every_mode_becomes_rgb(mode):
    assert read_picture(Image.new(mode, (20, 10))).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_tone():
    assert read_picture(Image.new("I;16", (9, 9), 32768)).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_lies_on_white():
    assert read_picture(Image.new("RGBA", (9, 9), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_orientation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (10, 30)


def test_fit_crops_the_centre():
    picture = Image.new("RGB", (300, 100), "blue")
    picture.paste("red", (100, 0, 200, 100))
    fitted = fit_picture(picture, 50, 50)
    assert fitted.size == (50, 50)
    low_high = fitted.crop((2, 2, 48, 48)).getextrema()
    assert low_high[0][0] > 250
    assert max(low_high[1][1], low_high[2][1]) < 5


def test_data_uri_round_trip():
    picture = Image.effect_noise((17, 11), 80).convert("RGB")
    assert read_picture(data_uri(picture)).tobytes() == picture.tobytes()
    with pytest.raises(ControlError, match="the picture"):
        read_picture("data:image/png;base64,xxxx")
