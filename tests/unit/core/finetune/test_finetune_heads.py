"""Heads: layout of their outputs, widths, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from olmoearth_cli.core.finetune.heads import PIXEL_DECODERS, WINDOW_DECODERS, HeadSpec, build_head

SEGMENT = HeadSpec(kind="segmentation", classes=3, width=8, patch_px=4)
CLASSIFY = HeadSpec(kind="classification", classes=3, width=8, patch_px=4)


def test_the_linear_segmentation_head_lays_pixels_out_as_the_reference(spec_folder: Path) -> None:
    for case in json.loads((spec_folder / "golden_knn.json").read_text())["patch_logits_to_pixels"]:
        outputs = torch.tensor(case["patch_logits_BHWK"])
        width = outputs.shape[-1]
        head = build_head(
            HeadSpec(kind="segmentation", classes=case["num_classes"], width=width, patch_px=case["patch"])
        )
        with torch.no_grad():
            head.body.body[0].weight.copy_(torch.eye(width))
            head.body.body[0].bias.zero_()
        size = tuple(case["label_size"]) if "label_size" in case else None
        assert torch.allclose(head(outputs, size), torch.tensor(case["expected_BCHW"]), atol=2e-4)


@pytest.mark.parametrize("patch_px", [1, 2, 8])
@pytest.mark.parametrize("decoder", PIXEL_DECODERS)
@pytest.mark.parametrize("kind", ["segmentation", "pixel_regression"])
def test_pixel_heads_answer_for_every_pixel(kind: str, decoder: str, patch_px: int) -> None:
    classes = 3 if kind == "segmentation" else 1
    spec = HeadSpec(kind=kind, classes=classes, width=8, patch_px=patch_px, decoder=decoder, batch_norm=True)
    shape = (2, 3 * patch_px, 5 * patch_px)
    outputs = build_head(spec)(torch.randn(2, 3, 5, 8))
    assert outputs.shape == (shape if classes == 1 else (2, 3, *shape[1:]))
    assert HeadSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("decoder", WINDOW_DECODERS)
@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_window_heads_answer_once(kind: str, decoder: str) -> None:
    classes = 1 if kind == "regression" else 3
    spec = HeadSpec(kind=kind, classes=classes, width=8, patch_px=4, decoder=decoder)
    outputs = build_head(spec)(torch.randn(2, 3, 5, 8) if spec.reads_map else torch.randn(2, 8))
    assert spec.reads_map is (decoder == "pooling")
    assert outputs.shape == ((2,) if classes == 1 else (2, 3))


def test_the_centre_head_reads_the_middle_patch_alone() -> None:
    head = build_head(replace(CLASSIFY, centre=True))
    patches = torch.randn(2, 4, 5, 8)
    linear = head.body.body[0]
    assert torch.equal(head(patches), linear(patches[:, 2, 2]))


def test_upsampling_after_the_layer_equals_the_published_order() -> None:
    head = build_head(replace(SEGMENT, decoder="conv"))
    patches = torch.randn(2, 3, 4, 8)
    upsampled = F.interpolate(patches.movedim(-1, 1), scale_factor=4, mode="bilinear", align_corners=False)
    linear = head.body.body
    wanted = F.conv2d(upsampled, linear.weight[..., None, None], linear.bias)
    assert torch.allclose(head(patches), wanted, atol=1e-6)


def test_unets_have_the_published_widths() -> None:
    def channels(spec: HeadSpec) -> list[tuple[int, int]]:
        convs = [m for m in build_head(spec).modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(conv.kernel_size == (3, 3) for conv in convs)
        return [(conv.in_channels, conv.out_channels) for conv in convs]

    base = replace(SEGMENT, width=768)
    assert channels(replace(base, decoder="unet_tapered")) == [(768, 768), (768, 256), (256, 128), (128, 3)]
    assert channels(replace(base, decoder="unet")) == [(768, 768), (768, 768), (768, 768), (768, 3)]
    double = replace(base, decoder="unet_tapered", convolutions=2, batch_norm=True, patch_px=2)
    assert channels(double) == [(768, 768), (768, 128), (128, 128), (128, 3)]
    biased = [m.bias is not None for m in build_head(double).modules() if isinstance(m, torch.nn.Conv2d)]
    assert biased == [False, False, False, True]


def test_the_pooling_decoder_is_convolution_maximum_and_two_layers() -> None:
    head = build_head(replace(CLASSIFY, decoder="pooling"))
    sizes = [tuple(p.shape) for p in head.parameters()]
    assert sizes == [(128, 8, 3, 3), (128,), (512, 128), (512,), (3, 512), (3,)]


def test_the_same_seed_gives_the_same_head_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    a, b, c = build_head(SEGMENT, 1), build_head(SEGMENT, 1), build_head(SEGMENT, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    first = [head.body.body[0].weight for head in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_scores_are_probabilities_or_values_in_the_units_of_the_targets() -> None:
    outputs = torch.tensor([[0.0, 2.0, -1.0]])
    assert CLASSIFY.scores(outputs)[0, 1].item() == pytest.approx(0.8438, abs=1e-4)
    several = replace(CLASSIFY, kind="multilabel")
    assert several.scores(outputs)[0].tolist() == pytest.approx([0.5, 0.8808, 0.2689], abs=1e-4)
    values = HeadSpec(kind="regression", classes=1, width=8, patch_px=4)
    assert values.scores(torch.tensor([1.0, -2.0]), (10.0, 3.0)).tolist() == [13.0, 4.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "detection"}, "kind"),
        ({"decoder": "unet"}, "classification has linear"),
        ({"classes": 0}, "at least 1"),
        ({"kind": "regression"}, "one output"),
        ({"kind": "segmentation", "decoder": "unet", "patch_px": 3}, "patch side 3"),
        ({"centre": True, "decoder": "pooling"}, "centre"),
    ],
)
def test_heads_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CLASSIFY, **change)


def test_a_description_with_other_keys_or_types_is_refused() -> None:
    content = CLASSIFY.to_json()
    with pytest.raises(ValueError, match="keys"):
        HeadSpec.from_json({**content, "extra": 1})
    with pytest.raises(ValueError, match="whole numbers"):
        HeadSpec.from_json({**content, "classes": 2.5})
