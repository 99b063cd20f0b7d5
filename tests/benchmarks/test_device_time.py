from types import SimpleNamespace

from benchmarks import device_time


def line(name, *intervals):
    events = [SimpleNamespace(start_ns=start, duration_ns=end - start) for start, end in intervals]
    return SimpleNamespace(name=name, events=events)


def test_only_kernels_on_devices_count_and_overlaps_count_once():
    planes = [
        SimpleNamespace(name="/host:CPU", lines=[line("Stream #1", (0, 100))]),
        SimpleNamespace(
            name="/device:GPU:0",
            lines=[
                line("Stream #13(Compute)", (0, 2), (1, 3)),
                line("Stream #14", (5, 6)),
                line("XLA Modules", (0, 9)),
            ],
        ),
    ]
    assert device_time.covered(device_time._device_events(planes)) == 4


def test_a_cpu_has_no_time_of_its_own():
    assert device_time.busy_seconds(lambda: None) is None
