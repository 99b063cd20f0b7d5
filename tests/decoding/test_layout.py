"""A model is looked into once, and its layout says where its layers are scanned."""

from flaxformer.decoding import layout
from flaxformer.decoding.layout import Layout, layout_of
from flaxformer.decoding.weight_order import Stack
from tests.decoding.test_model_session import model_of


def test_scanned_layers_are_found_in_caches_and_parameters():
    found = layout_of(*model_of("declm_scan"))
    assert found == Layout(("decoder", "decoder"), Stack(("decoder", "decoder"), 1), {})
    assert layout_of(*model_of("declm_tied")) == Layout(None, None, {})


def test_a_model_is_looked_into_once(monkeypatch):
    seen, look = [], layout._look
    monkeypatch.setattr(layout, "_LAYOUTS", {})
    monkeypatch.setattr(layout, "_look", lambda module: seen.append(module) or look(module))
    model, variables = model_of("declm_tied")
    assert layout_of(model, variables) == layout_of(model.clone(), variables)
    assert len(seen) == 1
