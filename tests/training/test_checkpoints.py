import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer.training import checkpoints, integrity, optimizers
from flaxformer.training.state import TrainState

PARAMS = {"embed": {"embedding": jnp.arange(6.0).reshape(3, 2)}, "norm": {"scale": jnp.ones(2)}}
OPTIMIZER = optimizers.adafactor(0.1, beta1=0.9, global_norm_clip_threshold=1.0, accumulate_steps=2)


def state_at(step, params=PARAMS, optimizer=OPTIMIZER):
    state = TrainState.create(params, optimizer, jax.random.key(7))
    moved = jax.tree.map(lambda x: x + 0.25 if x.dtype == jnp.float32 else x, state.opt_state)
    return state.replace(step=jnp.int32(step), opt_state=moved)


def as_numbers(state):
    return jax.tree.map(np.asarray, state.replace(dropout_key=jax.random.key_data(state.dropout_key)))


def test_what_is_saved_comes_back(tmp_path):
    saved = state_at(5)
    path = checkpoints.save(tmp_path, saved, {"step": 5})
    assert path.name == "checkpoint_5"
    like = jax.eval_shape(lambda: TrainState.create(PARAMS, OPTIMIZER, jax.random.key(0)))
    for form in (like, state_at(0)):
        state, dataset = checkpoints.restore(tmp_path, form)
        assert jax.tree.structure(state) == jax.tree.structure(saved)
        jax.tree.map(np.testing.assert_array_equal, as_numbers(state), as_numbers(saved))
        assert {leaf.weak_type for leaf in jax.tree.leaves((state.params, state.opt_state))} == {False}
        assert dataset == {"step": 5}


def test_a_given_generator_of_random_numbers_comes_back(tmp_path):
    saved = state_at(1).replace(dropout_key=jax.random.key(3, impl="rbg"))
    checkpoints.save(tmp_path, saved)
    restored, _ = checkpoints.restore(tmp_path, saved)
    assert restored.dropout_key == saved.dropout_key


def test_arrays_come_back_where_those_of_the_form_are(tmp_path):
    device = jax.devices()[-1]
    checkpoints.save(tmp_path, state_at(1))
    restored, _ = checkpoints.restore(tmp_path, jax.device_put(state_at(0), device))
    assert restored.params["norm"]["scale"].devices() == {device}


def test_parameters_can_be_read_without_their_optimizer(tmp_path):
    checkpoints.save(tmp_path, state_at(5))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_params(tmp_path), PARAMS)


def test_the_latest_few_are_kept_and_the_latest_is_restored(tmp_path):
    for step in (1, 9, 10):
        checkpoints.save(tmp_path, state_at(step), keep=2)
    assert checkpoints.steps(tmp_path) == [9, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_10", "checkpoint_9"]
    assert checkpoints.restore(tmp_path, state_at(0)).state.step == 10
    assert checkpoints.restore(tmp_path, state_at(0), step=9).state.step == 9


def test_saving_a_step_again_changes_nothing(tmp_path):
    checkpoints.save(tmp_path, state_at(3))
    checkpoints.save(tmp_path, state_at(3, {"embed": PARAMS["embed"], "norm": {"scale": jnp.zeros(2)}}))
    np.testing.assert_array_equal(checkpoints.restore_params(tmp_path)["norm"]["scale"], jnp.ones(2))


def test_half_a_checkpoint_is_never_picked_up_and_is_cleared_away(tmp_path):
    whole = checkpoints.save(tmp_path, state_at(1))
    shutil.copytree(whole, tmp_path / "checkpoint_2.tmp")
    (tmp_path / "checkpoint_3.tmp.orbax-checkpoint-tmp-1").mkdir()
    assert checkpoints.steps(tmp_path) == [1]
    checkpoints.save(tmp_path, state_at(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_1", "checkpoint_2"]


def test_all_differences_to_the_model_are_listed_at_once(tmp_path):
    checkpoints.save(tmp_path, state_at(1, optimizer=optax.sgd(0.1)))
    other = {"embed": {"embedding": jnp.ones((4, 2))}, "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="does not fit this model and optimizer") as caught:
        checkpoints.restore(tmp_path, state_at(0, other, optax.sgd(0.1)))
    message = str(caught.value)
    assert str(tmp_path / "checkpoint_1") in message
    assert "missing target/bias float32[2]" in message
    assert "extra target/norm/scale float32[2]" in message
    assert "target/embed/embedding is float32[3, 2], expected float32[4, 2]" in message


def test_another_optimizer_is_a_difference_too(tmp_path):
    checkpoints.save(tmp_path, state_at(1, optimizer=optax.sgd(0.1)))
    with pytest.raises(ValueError, match="missing state/opt_state/.*mini_step int32"):
        checkpoints.restore(tmp_path, state_at(0))


UNREADABLE = "cannot be read .*expected a complete one. Remove the directory"


def test_a_lost_file_is_named(tmp_path):
    path = checkpoints.save(tmp_path, state_at(4))
    (path / "dataset" / "metadata").unlink()
    with pytest.raises(ValueError, match=rf"checkpoint_4 {UNREADABLE}") as caught:
        checkpoints.restore(tmp_path, state_at(0))
    assert str(path) in str(caught.value) and "(missing dataset/metadata)" in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = checkpoints.save(tmp_path, state_at(4))
    victim = max(path.glob("state/**/d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ValueError, match=rf"changed state/.*{victim.name}.*expected a complete one"):
        checkpoints.restore_params(tmp_path)


@pytest.mark.parametrize("name", ["state/_METADATA", "dataset/metadata"])
def test_damage_without_a_list_of_files_is_found_on_reading(tmp_path, name):
    path = checkpoints.save(tmp_path, state_at(4))
    (path / integrity.SEAL).unlink()
    (path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"checkpoint_4 {UNREADABLE}"):
        checkpoints.restore(tmp_path, state_at(0))


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no checkpoint; expected any checkpoint"):
        checkpoints.restore(tmp_path / "nowhere", state_at(0))
    checkpoints.save(tmp_path, state_at(4))
    with pytest.raises(ValueError, match="holds checkpoints of the steps 4; expected a checkpoint of step 3"):
        checkpoints.restore_params(tmp_path, step=3)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep is 0; expected at least 1"):
        checkpoints.save(tmp_path, state_at(1), keep=0)
