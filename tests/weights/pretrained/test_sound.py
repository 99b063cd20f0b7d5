"""Files of sound models as older releases wrote them: other names, bodies alone, nothing for what can be computed."""

import json

import jax
import numpy as np
import pytest

from flaxformer.weights.exporting import save_safetensors
from flaxformer.weights.pretrained import load_pretrained
from flaxformer.weights.pretrained.files import open_weights
from tests.parity.recorded import FIXTURES


def rewritten(tmp_path, family, rename, **changes):
    """A fixture's folder with other names for its arrays; None leaves one out."""
    place = tmp_path / family
    place.mkdir()
    config = json.loads((FIXTURES / family / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))
    kept = {rename(name): array for name, array in open_weights(FIXTURES / family).items()}
    save_safetensors(place / "model.safetensors", {name: array for name, array in kept.items() if name})
    return place


def test_the_older_names_of_normed_kernels_are_read(tmp_path):
    def old(name):
        return name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )

    _, variables = load_pretrained(rewritten(tmp_path, "wav2vec2", old))
    jax.tree.map(np.testing.assert_array_equal, variables, load_pretrained(FIXTURES / "wav2vec2")[1])


def test_a_body_alone_has_no_head(tmp_path):
    def body(name):
        return None if name.startswith("lm_head") else name.removeprefix("wav2vec2.")

    model, variables = load_pretrained(rewritten(tmp_path, "wav2vec2", body, architectures=["Wav2Vec2Model"]))
    _, whole = load_pretrained(FIXTURES / "wav2vec2")
    del whole["params"]["heads_ctc"]
    assert model.head_factories == ()
    jax.tree.map(np.testing.assert_array_equal, variables, whole)


def test_a_file_without_the_vector_of_masked_frames_has_no_parameter_for_it(tmp_path):
    place = rewritten(tmp_path, "wav2vec2", lambda name: None if "masked" in name else name)
    assert "masked" not in load_pretrained(place)[1]["params"]


def test_sinusoids_that_a_file_leaves_out_are_computed(tmp_path):
    place = rewritten(tmp_path, "whisper", lambda name: None if "encoder.embed_positions" in name else name)
    _, variables = load_pretrained(place)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5),
        variables,
        load_pretrained(FIXTURES / "whisper")[1],
    )


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("wav2vec2", {"add_adapter": True}, "has add_adapter=True, which is not implemented"),
        ("wav2vec2", {"architectures": ["Wav2Vec2ForPreTraining"]}, "'Wav2Vec2ForPreTraining', which is not"),
        ("wav2vec2", {"num_feat_extract_layers": 7}, "has num_feat_extract_layers=7, .*expected 3"),
        ("whisper", {"architectures": ["WhisperForAudioClassification"]}, "'WhisperForAudioClassification', which"),
        ("whisper", {"tie_word_embeddings": False}, "has tie_word_embeddings=False, which is not implemented"),
        ("longt5_local", {"encoder_attention_type": "sparse"}, "expected 'local', 'transient-global'"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, family, changes, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(rewritten(tmp_path, family, lambda name: name, **changes))


def test_longt5_without_a_whole_block_looks_through_the_window_only(tmp_path):
    place = rewritten(tmp_path, "longt5_tglobal", lambda name: name, global_block_size=16)
    model, variables = load_pretrained(place)
    tokens = np.arange(2, 12)[None]

    def encoded(params):
        return model.apply({"params": params}, tokens, enable_dropout=False, method="encode")

    alike = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 7 if "T5LayerNorm_0" in jax.tree_util.keystr(path) else x, variables["params"]
    )
    encoded = jax.jit(encoded)
    np.testing.assert_array_equal(encoded(variables["params"]), encoded(alike))
