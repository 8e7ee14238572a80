# SPDX-License-Identifier: Apache-2.0
"""Widths, published names and the pairwise reference of the disentanglement modules."""

import pytest
import torch

from padding.alignment import FeatureDecoder, FeatureEncoder, RelationNet, disentangle


def test_official_modules_have_the_published_names_and_shapes():
    encoder = FeatureEncoder(256, 256, arch="official", dropout=0.1)
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    assert shapes == {f"encoder.{i}.{k}": s for i in (0, 1) for k, s in (("weight", (256, 256)), ("bias", (256,)))}
    decoder = FeatureDecoder(256, 256, 256, arch="official", dropout=0.1)
    assert {k: tuple(v.shape) for k, v in decoder.state_dict().items()} == {
        "decoder.0.weight": (256, 512),
        "decoder.0.bias": (256,),
        "decoder.3.weight": (256, 256),
        "decoder.3.bias": (256,),
    }
    relation = RelationNet(256, 256)
    assert {k: tuple(v.shape) for k, v in relation.state_dict().items()} == {
        "fc1.weight": (256, 512),
        "fc1.bias": (256,),
        "fc2.weight": (1, 256),
        "fc2.bias": (1,),
    }


def test_parameter_counts_of_the_released_model():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(FeatureEncoder(256, 256, arch="official", dropout=0.1)) == 131_584
    assert count(FeatureDecoder(256, 256, 256, arch="official", dropout=0.1)) == 197_120
    assert count(RelationNet(256, 256)) == 131_585


def test_relation_net_equals_scoring_each_pair():
    net = RelationNet(4, 6)
    features, embeddings = torch.randn(3, 4), torch.randn(5, 4)
    got = net(features, embeddings)
    for i in range(3):
        for j in range(5):
            pair = torch.cat([features[i], embeddings[j]])
            torch.testing.assert_close(got[i, j], torch.sigmoid(net.fc2(torch.relu(net.fc1(pair))))[0])


@pytest.mark.parametrize("arch", ["ours", "official"])
def test_widths_may_differ_and_every_parameter_learns(arch):
    D, E = 8, 5
    related = FeatureEncoder(D, E, arch=arch, dropout=0.0)
    unrelated = FeatureEncoder(D, D, arch=arch, dropout=0.0)
    decoder = FeatureDecoder(E, D, D, arch=arch, dropout=0.0)
    parts = disentangle(torch.randn(3, D), related, unrelated, decoder, variational=False)
    assert parts.related.shape == (3, E)
    assert parts.unrelated.shape == parts.decoded.shape == (3, D)
    parts.decoded.square().sum().backward()
    assert all(p.grad is not None for m in (related, unrelated, decoder) for p in m.parameters())


def test_only_the_official_decoder_cannot_reach_negative_targets():
    torch.manual_seed(0)
    minimum = {}
    for arch in ("ours", "official"):
        decoder = FeatureDecoder(2, 2, 4, arch=arch, dropout=0.0)
        with torch.no_grad():
            decoder.decoder[3].bias.fill_(-10.0)
        minimum[arch] = float(decoder(torch.zeros(1, 2), torch.zeros(1, 2)).min().detach())
    assert minimum["official"] == pytest.approx(0.2 * -10, abs=0.5)
    assert minimum["ours"] < -9


def test_variational_form_samples_and_returns_the_posterior():
    unrelated = FeatureEncoder(4, 8, arch="ours", dropout=0.0)
    modules = (
        FeatureEncoder(4, 3, arch="ours", dropout=0.0),
        unrelated,
        FeatureDecoder(3, 4, 4, arch="ours", dropout=0.0),
    )
    x = torch.randn(2, 4)
    first, second = (disentangle(x, *modules, variational=True) for _ in range(2))
    assert first.log_variance is not None
    assert first.log_variance.shape == first.unrelated.shape == (2, 4)
    torch.testing.assert_close(first.unrelated, second.unrelated)
    assert not torch.equal(first.decoded, second.decoded)


def test_unknown_architecture_is_named():
    with pytest.raises(ValueError, match=r"DISENTANGLE.ARCH is 'mlp'.*ours, official"):
        FeatureEncoder(2, 2, arch="mlp", dropout=0.0)
