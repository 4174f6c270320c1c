"""A made-up but plausible landscape: land cover, its reflectance and backscatter through the year.

Made for demonstrations and tests: every number here is a textbook value or an estimate, and nothing that a model
learns or scores on it says anything about the Earth. All randomness comes from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage, special

Array = np.ndarray
CLASSES = ("water", "broadleaf", "conifer", "grassland", "winter_cereal", "maize", "bare", "built")
"""Land-cover classes; their number in a class map is the position here plus 1."""
BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
FIELD_CLASSES = ("grassland", "winter_cereal", "maize", "bare")
FIELD_SHARES = (0.3, 0.36, 0.27, 0.07)
LOOKS = 4.4
"""Equivalent number of looks of Sentinel-1 IW GRD at 10 m."""
SPECKLE_PX = 0.7
"""Smoothing of the speckle: a correlation of neighbours near the 0.7 of real scenes."""

# Reflectance x 10000 in the order of BANDS, without leaves and at the peak of the season.
_DORMANT = {
    "water": (420, 380, 260, 160, 240, 190, 170, 150, 90, 70, 470, 140),
    "broadleaf": (420, 520, 620, 1500, 900, 1150, 1350, 1600, 2000, 1350, 380, 1500),
    "conifer": (230, 340, 270, 1750, 560, 1350, 1650, 1850, 950, 470, 240, 1750),
    "grassland": (450, 680, 650, 2200, 1050, 1750, 2050, 2350, 2100, 1250, 420, 2250),
    "winter_cereal": (720, 950, 1200, 1900, 1450, 1650, 1800, 2050, 2750, 2200, 640, 2000),
    "maize": (850, 1080, 1400, 1950, 1650, 1800, 1950, 2150, 3000, 2450, 760, 2100),
    "bare": (1150, 1500, 1950, 2500, 2200, 2350, 2500, 2700, 3500, 3000, 1000, 2600),
    "built": (1350, 1450, 1550, 1900, 1650, 1750, 1850, 1950, 2150, 1950, 1250, 1900),
}
_PEAK = {
    "water": (480, 520, 340, 220, 330, 250, 230, 200, 110, 80, 500, 180),
    "broadleaf": (220, 460, 250, 3900, 800, 2850, 3650, 4050, 1750, 780, 240, 3900),
    "conifer": (210, 370, 240, 2300, 600, 1800, 2200, 2450, 1000, 480, 230, 2300),
    "grassland": (300, 650, 380, 3800, 1050, 2850, 3550, 3950, 1950, 950, 310, 3700),
    "winter_cereal": (270, 560, 280, 4500, 900, 3300, 4250, 4650, 1650, 750, 280, 4300),
    "maize": (280, 600, 310, 4200, 950, 3050, 3950, 4350, 1800, 850, 290, 4100),
    "bare": (1100, 1450, 1850, 2550, 2100, 2350, 2500, 2700, 3400, 2850, 960, 2600),
    "built": (1300, 1420, 1480, 2050, 1620, 1850, 1980, 2100, 2150, 1880, 1210, 2000),
}
# (day of green-up, day of senescence, steepness of each in days): greenness is the product of two logistic curves.
_SEASON = {
    "water": (150, 260, 20, 20),
    "broadleaf": (118, 296, 7, 9),
    "conifer": (110, 290, 25, 25),
    "grassland": (80, 310, 14, 18),
    "winter_cereal": (88, 188, 12, 6),
    "maize": (174, 268, 9, 8),
    "bare": (150, 260, 20, 20),
    "built": (110, 300, 20, 20),
}
# Backscatter in dB: (VV, VH) when dormant and at the peak.
_RADAR = {
    "water": ((-20.5, -27.5), (-19.5, -27.0)),
    "broadleaf": ((-10.0, -15.8), (-9.2, -14.2)),
    "conifer": ((-9.8, -15.5), (-9.5, -15.0)),
    "grassland": ((-11.8, -19.0), (-12.6, -18.2)),
    "winter_cereal": ((-10.5, -18.5), (-14.5, -19.5)),
    "maize": ((-10.2, -19.2), (-9.6, -14.8)),
    "bare": ((-11.5, -20.5), (-11.3, -20.0)),
    "built": ((-5.5, -13.0), (-5.5, -13.0)),
}


@dataclass(frozen=True)
class Landscape:
    """Land cover of a square."""

    classes: Array
    """uint8 [H, W], 1-based number of the class."""
    fields: Array
    """int32 [H, W], number of the parcel that a pixel belongs to."""
    seed: int

    @cached_property
    def _traits(self) -> dict[str, Array]:
        """What tells parcels of one class apart: brightness, vigour, days late."""
        rng = np.random.default_rng([self.seed, 1])
        count = int(self.fields.max()) + 1
        return {
            "bright": rng.lognormal(0.0, 0.08, count).astype(np.float32),
            "vigour": np.clip(rng.normal(0.95, 0.1, count), 0.5, 1.15).astype(np.float32),
            "late": rng.normal(0.0, 7.0, count).astype(np.float32),
        }

    @cached_property
    def _texture(self) -> Array:
        """Soil and canopy texture, [H, W] around 1; the same all year."""
        rng = np.random.default_rng([self.seed, 2])
        noise = smooth_noise(rng, self.classes.shape, 6.0) * 0.05 + smooth_noise(rng, self.classes.shape, 1.2) * 0.03
        return (1.0 + noise).astype(np.float32)

    def greenness(self, day: int) -> Array:
        """float32 [H, W], 0 (dormant) to about 1 (peak of the season) on a day of the year."""
        green = np.zeros(self.classes.shape, np.float32)
        for number, name in enumerate(CLASSES, 1):
            up, down, rise, fall = _SEASON[name]
            here = self.classes == number
            late = day - self._traits["late"][self.fields[here]]
            curve = 1 / (1 + np.exp(-(late - up) / rise)) / (1 + np.exp((late - down) / fall))
            green[here] = curve * self._traits["vigour"][self.fields[here]]
        return green

    def reflectance(self, day: int) -> Array:
        """Surface reflectance x 10000 on a day of the year, noise-free but textured: float32 [12, H, W]."""
        green = self.greenness(day)
        low = np.array([_DORMANT[name] for name in CLASSES], np.float32)[self.classes - 1]  # H W C
        high = np.array([_PEAK[name] for name in CLASSES], np.float32)[self.classes - 1]
        bright = self._traits["bright"][self.fields] * self._texture
        return ((low + green[..., None] * (high - low)) * bright[..., None]).transpose(2, 0, 1)

    def backscatter(self, day: int, *, ascending: bool, seed: int) -> Array:
        """Linear gamma-nought (VV, VH) with speckle on a day of the year: float32 [2, H, W]."""
        rng = np.random.default_rng([self.seed, 3, seed])
        green = self.greenness(day)
        low = np.array([_RADAR[name][0] for name in CLASSES], np.float32)[self.classes - 1]
        high = np.array([_RADAR[name][1] for name in CLASSES], np.float32)[self.classes - 1]
        wet = 0.8 * np.cos(2 * np.pi * (day - 20) / 365)  # wetter soil in winter
        tilt = 0.4 if ascending else -0.4
        decibel = (low + green[..., None] * (high - low)).transpose(2, 0, 1) + wet + tilt
        power = 10 ** (decibel / 10) * self._texture
        return (power * _speckle(rng, power.shape)).astype(np.float32)


def _speckle(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Gamma-distributed factors with mean 1, alike in neighbouring pixels: 10 m is finer than the radar resolves."""
    smooth = np.stack([smooth_noise(rng, shape[1:], SPECKLE_PX) for _ in range(shape[0])])
    return special.gammaincinv(LOOKS, special.ndtr(smooth.astype(np.float64))) / LOOKS


def landscape(seed: int, side_px: int) -> Landscape:
    """Make a square of countryside: parcels between woods, a river, villages and roads."""
    rng = np.random.default_rng([seed, 0])
    shape = (side_px, side_px)
    rows, cols = np.mgrid[0:side_px, 0:side_px].astype(np.float32)
    fields, field_classes = _parcels(rng, rows, cols, side_px)
    classes = field_classes[fields]
    wood = smooth_noise(rng, shape, side_px / 14)
    kind = smooth_noise(rng, shape, side_px / 10)
    classes[wood > 0.75] = _number("broadleaf")
    classes[(wood > 0.75) & (kind > 0.25)] = _number("conifer")
    village = smooth_noise(rng, shape, side_px / 18)
    houses = (village > 1.25) & (smooth_noise(rng, shape, 1.0) > -0.5)
    classes[houses] = _number("built")
    classes[_line(rng, rows, cols, side_px, 0.5) < 0.8] = _number("built")
    river = _line(rng, rows, cols, side_px, 2.5)
    classes[(river < 6.0) & (classes != _number("built"))] = _number("grassland")
    classes[river < 2.6] = _number("water")
    # Woods, villages and water are parcels of their own.
    parts = ndimage.label(np.isin(classes, [_number(n) for n in ("broadleaf", "conifer", "built", "water")]))[0]
    fields = np.where(parts > 0, fields.max() + parts, fields).astype(np.int32)
    return Landscape(classes.astype(np.uint8), fields, seed)


def _number(name: str) -> int:
    return CLASSES.index(name) + 1


def _parcels(rng: np.random.Generator, rows: Array, cols: Array, side: int) -> tuple[Array, Array]:
    """Parcel number of every pixel and the class of every parcel: rectangles in a turned frame, split until small."""
    angle = rng.uniform(0.15, 0.6)
    u = cols * np.cos(angle) + rows * np.sin(angle)
    v = -cols * np.sin(angle) + rows * np.cos(angle)
    fields = np.zeros(rows.shape, np.int32)
    stack = [(float(u.min()), float(u.max()) + 1, float(v.min()), float(v.max()) + 1)]
    count = 0
    while stack:
        u0, u1, v0, v1 = stack.pop()
        width, height = u1 - u0, v1 - v0
        if width * height < rng.uniform(250, 1400) or min(width, height) < 8:
            count += 1
            inside = (u >= u0) & (u < u1) & (v >= v0) & (v < v1)
            fields[inside] = count
            continue
        cut = rng.uniform(0.35, 0.65)
        if width > height:
            stack += [(u0, u0 + cut * width, v0, v1), (u0 + cut * width, u1, v0, v1)]
        else:
            stack += [(u0, u1, v0, v0 + cut * height), (u0, u1, v0 + cut * height, v1)]
    kinds = rng.choice([_number(name) for name in FIELD_CLASSES], count + 1, p=FIELD_SHARES)
    return fields, kinds


def _line(rng: np.random.Generator, rows: Array, cols: Array, side: int, bend: float) -> Array:
    """Distance in pixels from a winding line across the square."""
    start, slope = rng.uniform(0.25, 0.75) * side, rng.uniform(-0.4, 0.4)
    along, across = (cols, rows) if rng.random() < 0.5 else (rows, cols)
    path = start + slope * (along - side / 2)
    for wave in (0.9, 0.37):
        path = path + bend * wave * side / 40 * np.sin(2 * np.pi * along / (wave * side) + rng.uniform(0, 6.28))
    return np.abs(across - path) / np.sqrt(1 + slope**2)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Gaussian noise smoothed over `sigma` pixels, mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)
