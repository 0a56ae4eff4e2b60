"""Figures that are readable by all: colours that stay apart for colour-blind readers, and in print."""

import itertools

import numpy as np
import pytest
from matplotlib import colors

from yolo_slim_lessons.teaching import plots

# What a dichromat sees, in linear RGB: G. M. Machado, M. M. Oliveira, L. A. F. Fernandes (2009), severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
COLOURS = [each["color"] for each in plots.STYLE["axes.prop_cycle"]]


def lab(colour, blindness="none"):
    """CIELAB of an sRGB colour as it is seen; a distance of 2 can just be told, of 10 at a glance."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    ratios = XYZ @ seen / (XYZ @ np.ones(3))
    x, y, z = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_scale_is_right():
    assert lab("white") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("red") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)  # sRGB's red under D65
    apart = {kind: np.linalg.norm(lab("#808000", kind) - lab("#b05000", kind)) for kind in BLINDNESS}
    assert apart["deuteranopia"] < apart["none"] / 2  # olive and brown, which deuteranopes confuse


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_lines_of_one_figure_are_told_apart(blindness):
    for first, second in itertools.combinations(COLOURS, 2):
        assert np.linalg.norm(lab(first, blindness) - lab(second, blindness)) > 10, (first, second)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_every_line_is_seen_on_the_white_of_a_figure(blindness):
    for colour in COLOURS:
        assert np.linalg.norm(lab(colour, blindness) - lab("white", blindness)) > 25, colour
