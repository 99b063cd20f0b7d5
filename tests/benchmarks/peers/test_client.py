import sys
from pathlib import Path

import pytest

from benchmarks.peers import client

FOLDER = str(Path(client.__file__).parent)
GOOD = f"""
import sys
sys.path.insert(0, {FOLDER!r})
from serve import serve, settings, tokens

def make_tasks():
    print("what a library prints")
    rows = tokens(2, 3, 10, 0)
    assert len(rows) == 2 and all(2 <= token < 10 for row in rows for token in row)
    return {{name: ((lambda: None), {{"trace_seconds": 1.0}}) for name in settings()["programs"]}}, 7

serve("toy", ["pip"], make_tasks)
"""


def write(folder, text):
    path = folder / "peer.py"
    path.write_text(text)
    return path


def test_a_peer_answers_until_it_is_closed(tmp_path):
    with client.Peer("toy", sys.executable, write(tmp_path, GOOD), {"programs": ["forward"]}) as peer:
        assert peer.parameters == 7
        assert set(peer.versions) == {"pip"}
        assert peer.programs["forward"]["first_call_seconds"] >= 1.0
        assert peer.seconds("forward") >= 0.0
        with pytest.raises(ValueError, match="the peer toy ended with status 1; expected an answer"):
            peer.seconds("backward")


def test_a_peer_that_ends_is_refused(tmp_path, capfd):
    with pytest.raises(ValueError, match="the peer toy ended with status 1; expected an answer"):
        client.Peer("toy", sys.executable, write(tmp_path, "import no_such_module"), {})
    assert "no_such_module" in capfd.readouterr().err


def test_interpreters_given_take_precedence_over_the_environment():
    environ = {"BENCHMARK_PEER_HF_TORCH": "/no/torch", "BENCHMARK_PEER_HF_FLAX": sys.executable}
    found = client.interpreters([f"hf_torch={sys.executable}"], environ)
    assert found == {"hf_torch": sys.executable, "hf_flax": sys.executable}
