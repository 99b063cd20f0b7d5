from flaxformer.training import records


def test_records_come_back_in_order(tmp_path):
    recorder = records.Recorder(tmp_path / "run")
    recorder.write(5, {"loss": 2.0})
    recorder.write(10, {"loss": 1.0, "eval/loss": 1.5})
    recorder.close()
    assert records.read(tmp_path / "run") == [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0, "eval/loss": 1.5}]
    assert any((tmp_path / "run" / records.TENSORBOARD).iterdir())


def test_going_on_drops_later_and_broken_lines(tmp_path):
    (tmp_path / records.METRICS).write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "loss": 1.0}\n{"step": 15, "lo')
    recorder = records.Recorder(tmp_path, start_step=5, tensorboard=False)
    recorder.write(10, {"loss": 1.25})
    recorder.close()
    assert [(record["step"], record["loss"]) for record in records.read(tmp_path)] == [(5, 2.0), (10, 1.25)]
    assert not (tmp_path / records.TENSORBOARD).exists()


def test_a_record_is_on_disk_before_the_file_is_closed(tmp_path):
    recorder = records.Recorder(tmp_path, tensorboard=False)
    recorder.write(1, {"loss": 2.0})
    assert records.read(tmp_path) == [{"step": 1, "loss": 2.0}]
    recorder.close()


def test_no_run_has_no_records(tmp_path):
    assert records.read(tmp_path) == []


def test_the_loss_is_drawn_with_and_without_records(tmp_path):
    recorder = records.Recorder(tmp_path, tensorboard=False)
    recorder.plot()
    empty = (tmp_path / records.PLOT).read_bytes()
    recorder.write(1, {"loss": 2.0, "eval/loss": 3.0})
    recorder.plot()
    recorder.close()
    drawn = (tmp_path / records.PLOT).read_bytes()
    assert empty.startswith(b"\x89PNG") and drawn.startswith(b"\x89PNG") and drawn != empty
